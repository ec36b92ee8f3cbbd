//! What was done, under a permission.

macro_rules! operations {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// What was done. An event's action is the permission that it took; this is the detail `operation`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Operation {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Operation {
            /// All operations.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word in the audit chain.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The operation of a word.
            #[must_use]
            pub fn find(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

operations! {
    /// It was made.
    Create = "create",
    /// It was declared: made or changed, as the digests tell.
    Apply = "apply",
    /// It was removed.
    Delete = "delete",
    /// It was looked at.
    Read = "read",
    /// It was called off.
    Cancel = "cancel",
    /// It was deleted, and is there again.
    Restore = "restore",
    /// It was ended.
    Finish = "finish",
    /// It counts no more.
    Revoke = "revoke",
    /// It was signed.
    Sign = "sign",
    /// All of it was given out.
    Export = "export",
    /// It got another password.
    ChangePassword = "change-password",
    /// Each reading of it is an event from now on.
    MarkSensitive = "mark-sensitive",
    /// Reading it is no event any more.
    UnmarkSensitive = "unmark-sensitive",
}
