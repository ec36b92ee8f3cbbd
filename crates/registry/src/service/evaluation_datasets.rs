//! Evaluation datasets and their records.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use tokio::task::spawn_blocking;

use super::{
    Registry,
    model_registry::{page_token, read_page_token},
};
use crate::{
    error::{Error, Result},
    model::{
        evaluation_dataset::{
            EvaluationDataset, EvaluationDatasetSearch, MAX_EXPERIMENTS, NewEvaluationDataset, USER_TAG, check_name,
            digest, read_tags,
        },
        evaluation_record::{EvaluationRecord, MAX_RECORD_PAGE, RecordBatch, Upserted, read_records},
    },
    search::{EVALUATION_DATASETS, parse_filter, parse_order},
    store::no_evaluation_dataset,
};

/// How many datasets a search may ask for.
const MAX_WANTED: i64 = 50_000;
/// The most datasets that are sent at once: whoever asks for more gets them on several pages.
const MAX_SENT: u32 = 1000;
/// How many datasets, and how many records, a page has where the client does not say.
const DEFAULT_PAGE: i64 = 1000;
/// The most records that are named at once.
const MAX_NAMED: usize = 100_000;
/// Records that are longer than this wait until few others are read, in bytes.
const LARGE_RECORDS: usize = 1 << 20;

/// A search as a client writes it.
#[derive(Debug, Clone, Default)]
pub struct EvaluationDatasetQuery {
    /// Those that belong to one of these experiments; none named: all.
    pub experiment_ids: Vec<String>,
    /// What must hold.
    pub filter: String,
    /// What comes first.
    pub order_by: Vec<String>,
    /// The most that are wanted.
    pub max_results: Option<i64>,
    /// Where the page begins.
    pub page_token: Option<String>,
}

fn bad_limit(wanted: i64, remedy: &str) -> Error {
    Error::request(format!(
        "Invalid value {wanted} for parameter 'max_results' supplied. It must be {remedy}"
    ))
}

fn read_position(token: &str) -> Result<i64> {
    let read = || {
        let text = String::from_utf8(STANDARD.decode(token).ok()?).ok()?;
        text.parse().ok()
    };
    read()
        .ok_or_else(|| Error::request("Invalid page token, could not base64-decode: pass `next_page_token` unchanged"))
}

impl Registry {
    /// The numbers of experiments.
    async fn evaluated_experiments(&self, caller: &Caller, project: &str, ids: &[String]) -> Result<Vec<i64>> {
        if ids.len() > MAX_EXPERIMENTS {
            return Err(Error::request(format!(
                "{} experiments are too many at once: name at most {MAX_EXPERIMENTS}",
                ids.len()
            )));
        }
        let mut numbers = Vec::with_capacity(ids.len());
        for id in ids {
            let number = self.experiment_number(caller, project, id).await?;
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        Ok(numbers)
    }

    /// Makes an evaluation dataset. The tags are a text with a JSON object.
    #[tracing::instrument(name = "registry.create_evaluation_dataset", skip_all, fields(%project, %name))]
    pub async fn create_evaluation_dataset(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        tags: &str,
        experiment_ids: &[String],
    ) -> Result<EvaluationDataset> {
        let dataset_id = format!("d-{}", self.ids.next().simple());
        let resource = Resource::named(Kind::EvaluationDataset, project, &dataset_id);
        self.enter(caller, Action::RunWrite, resource).await?;
        check_name(name)?;
        let tags = read_tags(tags)?;
        let user = tags.get(USER_TAG).cloned();
        let event = caller.event(Action::RunWrite, Operation::Create, &resource);
        let new = NewEvaluationDataset {
            experiment_ids: self.evaluated_experiments(caller, project, experiment_ids).await?,
            dataset: EvaluationDataset {
                dataset_id: dataset_id.clone(),
                project: project.to_owned(),
                name: name.to_owned(),
                tags,
                schema: None,
                record_count: None,
                digest: digest(name, event.at),
                created_at: event.at,
                updated_at: event.at,
                created_by: user.clone(),
                updated_by: user,
            },
            event,
        };
        self.stores.evaluation_datasets.create_evaluation_dataset(&new).await?;
        tracing::info!(dataset_id, "evaluation dataset made");
        Ok(new.dataset)
    }

    /// An evaluation dataset.
    pub async fn get_evaluation_dataset(&self, caller: &Caller, project: &str, id: &str) -> Result<EvaluationDataset> {
        let resource = Resource::named(Kind::EvaluationDataset, project, id);
        self.enter(caller, Action::RunRead, resource).await?;
        let found = self
            .stores
            .evaluation_datasets
            .find_evaluation_dataset(project, id)
            .await?;
        found.ok_or_else(|| {
            Error::NotThere(format!(
                "Evaluation dataset with id '{}' not found",
                crate::model::mlflow_registry::shown(id)
            ))
        })
    }

    /// Removes an evaluation dataset with its records, if it is there.
    #[tracing::instrument(name = "registry.delete_evaluation_dataset", skip_all, fields(%project, dataset_id = %id))]
    pub async fn delete_evaluation_dataset(&self, caller: &Caller, project: &str, id: &str) -> Result<()> {
        let resource = Resource::named(Kind::EvaluationDataset, project, id);
        self.enter(caller, Action::RunWrite, resource).await?;
        let event = caller.event(Action::RunWrite, Operation::Delete, &resource);
        let datasets = &self.stores.evaluation_datasets;
        if datasets.delete_evaluation_dataset(project, id, &event).await? {
            tracing::info!("evaluation dataset deleted");
        }
        Ok(())
    }

    /// The evaluation datasets that are found, and the token of the next page.
    pub async fn search_evaluation_datasets(
        &self,
        caller: &Caller,
        project: &str,
        query: &EvaluationDatasetQuery,
    ) -> Result<(Vec<EvaluationDataset>, Option<String>)> {
        self.enter(caller, Action::RunRead, Resource::project(project)).await?;
        let wanted = query.max_results.unwrap_or(DEFAULT_PAGE);
        if wanted > MAX_WANTED {
            return Err(bad_limit(wanted, &format!("at most {MAX_WANTED}")));
        }
        let limit = u32::try_from(wanted).ok().filter(|limit| *limit > 0);
        let limit = limit
            .ok_or_else(|| bad_limit(wanted, "a positive integer"))?
            .min(MAX_SENT);
        let token = query.page_token.as_deref().filter(|token| !token.is_empty());
        let search = EvaluationDatasetSearch {
            experiment_ids: self
                .evaluated_experiments(caller, project, &query.experiment_ids)
                .await?,
            filter: parse_filter(&EVALUATION_DATASETS, &query.filter)?,
            order: parse_order(&EVALUATION_DATASETS, &query.order_by)?,
            offset: token.map_or(Ok(0), read_page_token)?,
            limit,
        };
        let datasets = &self.stores.evaluation_datasets;
        let mut found = datasets.search_evaluation_datasets(project, &search).await?;
        let has_more = found.len() > limit as usize;
        found.truncate(limit as usize);
        let next = has_more.then(|| page_token(search.offset + u64::from(limit)));
        Ok((found, next))
    }

    /// Sets tags of an evaluation dataset: a text with a JSON object.
    pub async fn set_evaluation_dataset_tags(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        tags: &str,
    ) -> Result<()> {
        let resource = Resource::named(Kind::EvaluationDataset, project, id);
        self.enter(caller, Action::RunWrite, resource).await?;
        let tags: BTreeMap<String, String> = read_tags(tags)?;
        let datasets = &self.stores.evaluation_datasets;
        datasets.set_evaluation_dataset_tags(project, id, &tags).await
    }

    /// Removes a tag of an evaluation dataset, if both are there.
    pub async fn delete_evaluation_dataset_tag(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        key: &str,
    ) -> Result<()> {
        let resource = Resource::named(Kind::EvaluationDataset, project, id);
        self.enter(caller, Action::RunWrite, resource).await?;
        let datasets = &self.stores.evaluation_datasets;
        datasets.delete_evaluation_dataset_tag(project, id, key).await
    }

    /// The experiments that an evaluation dataset belongs to; none if it is not there.
    pub async fn evaluation_dataset_experiments(&self, caller: &Caller, project: &str, id: &str) -> Result<Vec<i64>> {
        let resource = Resource::named(Kind::EvaluationDataset, project, id);
        self.enter(caller, Action::RunRead, resource).await?;
        let datasets = &self.stores.evaluation_datasets;
        datasets.evaluation_dataset_experiments(project, id).await
    }

    /// Lets an evaluation dataset belong to experiments, or no more.
    pub async fn change_evaluation_dataset_experiments(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        experiment_ids: &[String],
        adding: bool,
    ) -> Result<EvaluationDataset> {
        let resource = Resource::named(Kind::EvaluationDataset, project, id);
        self.enter(caller, Action::RunWrite, resource).await?;
        let numbers = self.evaluated_experiments(caller, project, experiment_ids).await?;
        let (datasets, now) = (&self.stores.evaluation_datasets, self.clock.now());
        let changed = if adding {
            datasets
                .add_evaluation_dataset_experiments(project, id, &numbers, now)
                .await
        } else {
            datasets
                .remove_evaluation_dataset_experiments(project, id, &numbers, now)
                .await
        };
        changed.map_err(|error| match error {
            Error::NotThere(message) if message == no_evaluation_dataset(id).to_string() => {
                Error::NotThere(message.trim_end_matches('.').to_owned())
            }
            other => other,
        })
    }

    /// Adds records to an evaluation dataset, or merges them with those that have the same inputs: a text with a JSON list.
    #[tracing::instrument(name = "registry.upsert_evaluation_records", skip_all, fields(%project, dataset_id = %id))]
    pub async fn upsert_evaluation_records(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        records: String,
    ) -> Result<Upserted> {
        let resource = Resource::named(Kind::EvaluationDataset, project, id);
        self.enter(caller, Action::RunWrite, resource).await?;
        let _place = if records.len() > LARGE_RECORDS {
            self.large_request().await
        } else {
            None
        };
        let ids = self.ids.clone();
        let next_id = move || format!("dr-{}", ids.next().simple());
        let records = spawn_blocking(move || read_records(&records, next_id)).await??;
        let batch = RecordBatch {
            records,
            now: self.clock.now(),
        };
        let store = &self.stores.evaluation_records;
        store.upsert_evaluation_records(project, id, &batch).await
    }

    /// A page of the records of an evaluation dataset, and the token of the next one.
    pub async fn list_evaluation_records(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        max_results: Option<i64>,
        token: Option<&str>,
    ) -> Result<(Vec<EvaluationRecord>, Option<String>)> {
        let resource = Resource::named(Kind::EvaluationDataset, project, id);
        self.enter(caller, Action::RunRead, resource).await?;
        let wanted = max_results.filter(|wanted| *wanted != 0).unwrap_or(DEFAULT_PAGE);
        let limit = u32::try_from(wanted).map_err(|_| bad_limit(wanted, "a positive integer"));
        let token = token.filter(|token| !token.is_empty());
        let after = token.map_or(Ok(0), read_position)?;
        let store = &self.stores.evaluation_records;
        let page = store
            .list_evaluation_records(project, id, after, limit?.min(MAX_RECORD_PAGE))
            .await?;
        Ok((page.records, page.next.map(|next| STANDARD.encode(next.to_string()))))
    }

    /// Removes records of an evaluation dataset; how many there were.
    #[tracing::instrument(name = "registry.delete_evaluation_records", skip_all, fields(%project, dataset_id = %id))]
    pub async fn delete_evaluation_records(
        &self,
        caller: &Caller,
        project: &str,
        id: &str,
        record_ids: &[String],
    ) -> Result<u64> {
        let resource = Resource::named(Kind::EvaluationDataset, project, id);
        self.enter(caller, Action::RunWrite, resource).await?;
        if record_ids.len() > MAX_NAMED {
            return Err(Error::request(format!(
                "{} records are too many at once: name at most {MAX_NAMED}",
                record_ids.len()
            )));
        }
        let store = &self.stores.evaluation_records;
        store.delete_evaluation_records(project, id, record_ids).await
    }
}
