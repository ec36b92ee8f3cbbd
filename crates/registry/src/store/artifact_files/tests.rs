use modelyard_artifacts::Digest;
use modelyard_auth::token::{Token, TokenKind};

use super::*;
use crate::store::testing::{PROJECT, at, test_stores};

#[tokio::test]
async fn an_upload_that_is_given_up_while_it_is_completed_is_one_or_the_other() {
    for test in test_stores().await {
        // Elsewhere there is one writer.
        let Some(pools) = test.postgres() else {
            continue;
        };
        let uploads = &test.stores.artifact_uploads;
        let upload = Upload {
            upload_id: "u".to_owned(),
            project: PROJECT.to_owned(),
            path: ArtifactPath::parse("f").unwrap(),
            part_count: 1,
            secret_hash: Token::generate(TokenKind::Exchanged).unwrap().hash(),
            created_at: at(1),
            is_complete: false,
        };
        uploads.create_upload(&upload).await.unwrap();
        let file = ArtifactFile {
            project: PROJECT.to_owned(),
            path: upload.path.clone(),
            digest: Digest::of(b"content"),
            size_bytes: 7,
            blocks: None,
            created_at: at(2),
        };
        // As a collection does: what is stored first, then the upload.
        let mut tx = pools.begin().await.unwrap();
        SqlStore::<PostgresPools>::hold_storage(&mut tx, PROJECT).await.unwrap();
        let give_up = async {
            test.until_one_waits().await;
            let given_up = sqlx::query("DELETE FROM artifact_upload WHERE id = 'u'")
                .execute(&mut *tx)
                .await;
            assert_eq!(given_up.unwrap().rows_affected(), 1);
            tx.commit().await.unwrap();
        };
        let (completed, ()) = tokio::join!(uploads.complete_upload("u", &file, 0), give_up);
        assert!(matches!(completed, Err(Error::NotFound { .. })), "{completed:?}");
    }
}
