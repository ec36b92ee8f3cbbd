//! The artifacts of runs and logged models, for pages that show them.

use super::{
    artifacts::{download_of_run, list_of_logged_model, list_of_run, presigned_upload},
    routes,
};

routes! {
    get "/artifacts/list" => list_of_run,
    post "/artifacts/presigned-download-url" => download_of_run,
    post "/artifacts/presigned-upload-url" => presigned_upload,
    get "/logged-models/{model_id}/artifacts/directories" => list_of_logged_model,
}
