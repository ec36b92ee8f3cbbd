use super::*;
use crate::store::testing::{PROJECT, TestStores, at, test_stores};

fn blob(content: &str) -> OldBlob {
    OldBlob {
        digest: Digest::of(content.as_bytes()),
        size_bytes: content.len() as u64,
    }
}

fn named(blob: OldBlob) -> NamedBlob {
    NamedBlob::new(blob.digest, blob.size_bytes)
}

/// How a blob is removed that was stored in the first second.
fn removal(collection: Option<&str>, seconds: i64) -> Removal<'_> {
    Removal {
        collection,
        is_of_removed_project: false,
        stored_before: at(1),
        now: at(seconds),
    }
}

async fn store(test: &TestStores, blob: OldBlob, seconds: i64) {
    let blobs = &test.stores.blobs;
    let view = blobs.storage_view(PROJECT).await.unwrap();
    blobs
        .note_blob(PROJECT, &named(blob), view.removals, at(seconds))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_stored_while_it_is_removed_cannot_be_named_afterwards() {
    for test in test_stores().await {
        let blobs = &test.stores.blobs;
        let (gone, other) = (blob("gone"), blob("other"));
        store(&test, gone, 1).await;
        store(&test, other, 1).await;
        let begun = blobs.begin_removal(PROJECT, &[gone], &removal(None, 2)).await.unwrap();
        assert_eq!(begun, [gone]);
        // An upload begins here, and finds the content in the store, where it is for a moment still.
        let view = blobs.storage_view(PROJECT).await.unwrap();
        let during = blobs.note_blob(PROJECT, &named(gone), view.removals, at(3)).await;
        assert!(matches!(during, Err(Error::Removed { .. })), "{during:?}");
        blobs.end_removal(PROJECT, &[gone], at(4)).await.unwrap();
        let after = blobs.note_blob(PROJECT, &named(gone), view.removals, at(5)).await;
        assert!(
            matches!(after, Err(Error::Removed { .. })),
            "{}: {after:?}",
            test.place.name
        );
        // Other content is not affected, nor what is stored from now on.
        blobs
            .note_blob(PROJECT, &named(other), view.removals, at(5))
            .await
            .unwrap();
        store(&test, gone, 6).await;
        let quota = blobs.storage_view(PROJECT).await.unwrap().quota;
        assert_eq!((quota.blob_count, quota.used_bytes), (2, 9));
    }
}

#[tokio::test]
async fn a_removal_that_stays_open_holds_up_nothing_else() {
    for test in test_stores().await {
        let blobs = &test.stores.blobs;
        let (left, again) = (blob("left"), blob("again"));
        for stored in [left, again] {
            store(&test, stored, 1).await;
        }
        blobs.begin_removal(PROJECT, &[left], &removal(None, 2)).await.unwrap();
        blobs.begin_removal(PROJECT, &[again], &removal(None, 2)).await.unwrap();
        blobs.end_removal(PROJECT, &[again], at(3)).await.unwrap();
        store(&test, again, 4).await;
        assert!(blobs.has_blob(PROJECT, again.digest).await.unwrap());
    }
}

#[tokio::test]
async fn a_collection_finds_its_own_removals_and_those_of_long_ago() {
    for test in test_stores().await {
        let blobs = &test.stores.blobs;
        let (own, old, young) = (blob("own"), blob("old"), blob("young"));
        for stored in [own, old, young] {
            store(&test, stored, 1).await;
        }
        for (removed, collection, begun_at) in [(old, None, 10), (own, Some("c"), 20), (young, None, 20)] {
            let begun = blobs
                .begin_removal(PROJECT, &[removed], &removal(collection, begun_at))
                .await
                .unwrap();
            assert_eq!(begun, [removed]);
        }
        let open = |collection| blobs.open_removals(PROJECT, at(10), collection, 10);
        let found: std::collections::BTreeSet<_> =
            open(Some("c")).await.unwrap().into_iter().map(|b| b.digest).collect();
        assert_eq!(found, [own.digest, old.digest].into());
        assert_eq!(open(Some("d")).await.unwrap(), [old]);
        assert_eq!(open(None).await.unwrap(), [old]);
    }
}
