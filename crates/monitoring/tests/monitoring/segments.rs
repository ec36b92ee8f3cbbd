//! Segments that cannot be committed.

use modelyard_testkit::postgres::test_databases;
use object_store::{ObjectStoreExt as _, path::Path};
use tonic::Code;

use crate::world::{ENDPOINT, World, rows};

const MARCH: &str = "2013-03-01T00:00:00Z";

#[tokio::test]
async fn a_segment_that_is_not_parquet_keeps_no_other_back() {
    for place in test_databases().await.unwrap() {
        let world = World::start(&place).await;
        world.register(1, 0.7).await;
        world.monitor().await;
        let march = rows(150, MARCH);
        let mut broken = world.upload("broken", &march[..10]).await;
        let path = Path::parse(format!("inference-log/default/{ENDPOINT}/{}", broken.files[0].path)).unwrap();
        world
            .storage
            .store()
            .put(&path, "no Parquet at all".into())
            .await
            .unwrap();
        broken.files.truncate(1);
        broken.files[0].size_bytes = 17;
        world.commit(broken).await.unwrap();
        world.log("good", &march).await;
        world
            .wait_window("2013-03", "the good one", |window| window["requests"] == 150)
            .await;
    }
}

#[tokio::test]
async fn what_cannot_be_a_segment_is_refused_at_once() {
    let place = modelyard_testkit::postgres::TestDatabase::sqlite().unwrap();
    let world = World::start(&place).await;
    let good = world.upload("s", &rows(10, MARCH)).await;
    let code = async |change: fn(&mut modelyard_proto::monitoring::v1::CommitSegmentRequest)| {
        let mut request = good.clone();
        change(&mut request);
        world.commit(request).await.err().map(|status| status.code())
    };
    assert_eq!(code(|_| {}).await, None);
    assert_eq!(
        code(|request| request.files[0].rows += 1).await,
        Some(Code::AlreadyExists)
    );
    let wrong: [fn(&mut modelyard_proto::monitoring::v1::CommitSegmentRequest); 5] = [
        |request| request.endpoint = "a/b".to_owned(),
        |request| request.segment_id = String::new(),
        |request| request.files.clear(),
        |request| request.files[0].path = "event_date=2013-03-02/s-0.parquet".to_owned(),
        |request| request.files[0].max_event_time_us = i64::MAX,
    ];
    // No project is named like this, so none is seen.
    assert_eq!(
        code(|request| request.project = "../x".to_owned()).await,
        Some(Code::NotFound)
    );
    for change in wrong {
        assert_eq!(code(change).await, Some(Code::InvalidArgument));
    }
}
