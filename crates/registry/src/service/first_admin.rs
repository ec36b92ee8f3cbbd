//! The admin of the first start.

use modelyard_auth::{
    Action, Principal,
    audit::Operation,
    token::{Token, TokenKind},
};
use serde_json::json;

use super::{
    Registry,
    openid::{Origin, anonymous_event},
};
use crate::{
    error::{Error, Result},
    model::identity::IdentityKind,
    store::FirstAdmin,
};

/// The name of the admin, of its role binding and of its token.
pub(crate) const NAME: &str = "admin";

impl Registry {
    /// Makes the user `admin` with a token, where the installation has no admin; the token is told once.
    pub(crate) async fn make_first_admin(&self, password: Option<&str>) -> Result<Option<Token>> {
        let password = match password {
            Some(password) => Some(self.hash_password(password.to_owned()).await?),
            None => None,
        };
        let token = Token::generate(TokenKind::Api).map_err(|error| Error::State(error.to_string()))?;
        let row = self.token_row(&token, NAME.to_owned(), None, None);
        let mut event = anonymous_event(
            &self.ids,
            self.clock.now(),
            Action::IdentityWrite.as_str(),
            &Origin::default(),
        );
        event.actor = Principal::service("registry").to_string();
        IdentityKind::User.as_str().clone_into(&mut event.resource_kind);
        NAME.clone_into(&mut event.resource);
        event.details =
            json!({"operation": Operation::Create.as_str(), "token": row.id, "has_password": password.is_some()});
        let admin = FirstAdmin {
            name: NAME,
            password,
            token: row,
            event,
        };
        let made = self.stores.first_admin.make_first_admin(&admin).await?;
        if made {
            self.know_change().await?;
        }
        Ok(made.then_some(token))
    }
}
