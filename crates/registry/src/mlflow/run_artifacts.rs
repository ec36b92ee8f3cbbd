//! The artifacts of runs and logged models, for pages that show them.

use super::{
    artifacts::{list_of_logged_model, list_of_run},
    routes,
};

routes! {
    get "/artifacts/list" => list_of_run,
    get "/logged-models/{model_id}/artifacts/directories" => list_of_logged_model,
}
