//! The description of the HTTP API.

use crate::support::start;

#[tokio::test]
async fn the_description_is_as_committed() {
    let place = modelyard_testkit::postgres::TestDatabase::sqlite().unwrap();
    let registry = start(&place).await;
    let paths = serde_json::to_value(&registry.openapi.paths).unwrap();
    assert!(
        paths
            .as_object()
            .unwrap()
            .keys()
            .all(|path| path.starts_with("/api/v1/projects/{project}/"))
    );
    insta::assert_json_snapshot!(
        "openapi",
        serde_json::json!({
            "paths": paths,
            "components": registry.openapi.components,
        })
    );
}
