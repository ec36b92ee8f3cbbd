//! The work of collections: one at a time in a process, step by step, each step a transaction that is done or not. It goes on after
//! a restart, and no step rests on what an earlier one only remembered.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use modelyard_artifacts::{Artifacts, Digest, DigestBuilder};
use modelyard_auth::audit::{NewEvent, Operation};
use modelyard_common::{Timestamp, error::Chain};
use tokio_util::sync::CancellationToken;

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        artifact_file::{ArtifactPath, UploadPart},
        collection::{Claim, CollectedOutcome, CollectionPlan, Freed, Phase},
        page::{Cursor as _, MAX_PAGE, PageRequest},
        storage::NamedBlob,
    },
    store::{Ending, FoundObject, OldBlob, Removal, Step, Stores, object_place},
};

/// How long no other process takes up a collection that does not get on.
const LEASE: Duration = Duration::from_mins(5);
/// After how long the lease is extended while objects are removed. What is left of it is longer than the store takes to remove
/// [`REMOVALS_IN_FLIGHT`] objects, tried again as often as it is.
const EXTENSION: Duration = Duration::from_mins(1);
/// How often is looked for collections that other processes started, or left.
const POLL: Duration = Duration::from_secs(10);
/// How long a collection waits after a step that failed.
const POSTPONEMENT: Duration = Duration::from_secs(30);
/// How often a collection is taken up, at most.
const MAX_ATTEMPTS: i64 = 20;
/// How many blobs are looked at once.
const BLOBS_AT_ONCE: u32 = 200;
/// How many blobs are begun to be removed at once: no more than are gone within [`LEFT_REMOVAL`], however slow the store is.
const BEGUN_AT_ONCE: usize = 64;
/// How many objects of the store are removed at once.
const REMOVALS_IN_FLIGHT: usize = 8;
/// How many blobs of the store are compared with the account at once.
const ADOPTED_AT_ONCE: usize = 1000;
/// How many paths of one content are looked at with one statement.
const PATHS_AT_ONCE: u32 = 1000;
/// A removal that has gone on for so long was left by a process that ended. One that is younger may be at work: whoever else
/// removed the object could do so after its content was stored again and named.
const LEFT_REMOVAL: Duration = Duration::from_mins(30);

/// Works at collections until `soft` is cancelled.
pub(crate) async fn run_collections(
    registry: Arc<Registry>,
    node: Arc<str>,
    soft: CancellationToken,
) -> Result<(), Infallible> {
    loop {
        let now = registry.clock.now();
        let claimed = registry
            .stores
            .collections
            .claim_collection(&node, now, now + LEASE)
            .await;
        match claimed {
            Ok(Some(claim)) => registry.collect(claim, &soft).await,
            Ok(None) => wait(&registry, &soft).await,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "collections wait until the database answers");
                wait(&registry, &soft).await;
            }
        }
        if soft.is_cancelled() {
            return Ok(());
        }
    }
}

async fn wait(registry: &Registry, soft: &CancellationToken) {
    tokio::select! {
        () = soft.cancelled() => {}
        () = registry.collections.notified() => {}
        () = tokio::time::sleep(POLL) => {}
    }
}

/// Ends the removals that processes left when they ended; how many.
pub(crate) async fn end_left_removals(stores: &Stores, blobs: &Artifacts, now: Timestamp) -> Result<u64> {
    let before = now - LEFT_REMOVAL;
    let mut count = 0;
    for project in stores.blobs.projects_with_open_removals(before).await? {
        loop {
            let left = stores
                .blobs
                .open_removals(&project, before, None, BLOBS_AT_ONCE)
                .await?;
            if left.is_empty() {
                break;
            }
            remove_objects(blobs, &project, &left).await?;
            stores.blobs.end_removal(&project, &left, now).await?;
            count += left.len() as u64;
        }
    }
    Ok(count)
}

/// Goes on behind the last that was looked at; whether there was none.
fn go_on<T>(after: &mut T, last: Option<T>) -> bool {
    let is_over = last.is_none();
    if let Some(last) = last {
        *after = last;
    }
    is_over
}

async fn remove_objects(blobs: &Artifacts, project: &str, removed: &[OldBlob]) -> Result<()> {
    let blobs = blobs.project(project)?;
    stream::iter(removed.to_vec())
        .map(move |blob| {
            let blobs = blobs.clone();
            async move { blobs.delete(blob.digest).await.map(drop) }
        })
        .buffer_unordered(REMOVALS_IN_FLIGHT)
        .try_collect::<()>()
        .await?;
    Ok(())
}

impl Registry {
    /// Removes parts that are a file now, or were given up, unless something else has their content. What cannot be removed now is
    /// removed by the next collection.
    pub(super) async fn remove_unnamed(&self, project: &str, parts: &[UploadPart]) {
        let parts: Vec<_> = parts
            .iter()
            .map(|part| OldBlob {
                digest: part.digest,
                size_bytes: part.size_bytes,
            })
            .collect();
        if let Err(error) = self.try_remove_unnamed(project, &parts).await {
            tracing::warn!(project, error = %Chain(&error), "the parts of an upload stay until the next collection");
        }
    }

    async fn try_remove_unnamed(&self, project: &str, parts: &[OldBlob]) -> Result<()> {
        for chunk in parts.chunks(BEGUN_AT_ONCE) {
            let now = self.clock.now();
            let removal = Removal {
                collection: None,
                is_of_removed_project: false,
                stored_before: now,
                now,
            };
            let begun = self.stores.blobs.begin_removal(project, chunk, &removal).await?;
            remove_objects(&self.blobs, project, &begun).await?;
            self.stores.blobs.end_removal(project, &begun, self.clock.now()).await?;
        }
        Ok(())
    }

    /// Works at a collection until it has ended, cannot go on, or the server stops.
    async fn collect(&self, mut claim: Claim, soft: &CancellationToken) {
        let id = claim.id.clone();
        if let Err(error) = self.try_collect(&mut claim, soft).await {
            tracing::warn!(collection = id, error = %Chain(&error), "a collection is held up");
            if let Err(error) = self.hold_up(&claim, &error).await {
                tracing::warn!(collection = id, error = %Chain(&error), "a collection waits until its lease has ended");
            }
        }
    }

    async fn hold_up(&self, claim: &Claim, error: &Error) -> Result<()> {
        // Another process works at it.
        if matches!(error, Error::Contended { .. }) {
            return Ok(());
        }
        let plan = claim.request.plan(claim.started_at)?;
        let step = self.step(claim, &plan);
        let said = error.to_string();
        if claim.attempt < MAX_ATTEMPTS {
            let until = step.now + POSTPONEMENT;
            return self.stores.collections.postpone_collection(&step, &said, until).await;
        }
        let event = self.closing_event(claim, step.now, Some(&said));
        self.stores
            .collections
            .end_collection(&step, Ending::Failed(&said), &event)
            .await
    }

    fn step<'a>(&self, claim: &'a Claim, plan: &'a CollectionPlan) -> Step<'a> {
        let now = self.clock.now();
        Step {
            claim,
            plan,
            now,
            lease_until: now + LEASE,
        }
    }

    fn closing_event(&self, claim: &Claim, now: Timestamp, problem: Option<&str>) -> NewEvent {
        let mut event = NewEvent {
            id: self.ids.next(),
            at: now,
            ..claim.event.clone()
        };
        event.add_detail("operation", Operation::Delete.as_str());
        if let Some(problem) = problem {
            event.outcome = modelyard_auth::audit::Outcome::Failed;
            event.reason = Some(problem.to_owned());
        }
        event
    }

    async fn try_collect(&self, claim: &mut Claim, soft: &CancellationToken) -> Result<()> {
        let plan = claim.request.plan(claim.started_at)?;
        if plan.dry_run && claim.attempt > 1 {
            self.stores
                .collections
                .restart_dry_run(&self.step(claim, &plan))
                .await?;
            claim.phase = Phase::FIRST;
        }
        loop {
            if !self.run_phase(claim, &plan, soft).await? {
                return Ok(());
            }
            let Some(next) = claim.phase.next() else {
                break;
            };
            claim.phase = next;
            let step = self.step(claim, &plan);
            self.stores.collections.enter_phase(&step, next).await?;
        }
        let digest = self.list_digest(claim).await?;
        let step = self.step(claim, &plan);
        let event = self.closing_event(claim, step.now, None);
        self.stores
            .collections
            .end_collection(&step, Ending::Finished(&digest.to_string()), &event)
            .await?;
        tracing::info!(collection = claim.id, project = claim.project, "collection finished");
        Ok(())
    }

    /// Runs a phase to its end; whether it got there.
    async fn run_phase(&self, claim: &Claim, plan: &CollectionPlan, soft: &CancellationToken) -> Result<bool> {
        let store = &self.stores.collector;
        let (mut after, mut after_experiment) = (String::new(), -1);
        loop {
            if soft.is_cancelled() {
                return Ok(false);
            }
            let step = &self.step(claim, plan);
            let is_over = match claim.phase {
                Phase::Runs => {
                    let last = store.take_runs(step, &after).await?;
                    go_on(&mut after, last)
                }
                Phase::LoggedModels => {
                    let last = store.take_logged_models(step, &after).await?;
                    go_on(&mut after, last)
                }
                Phase::Uploads => {
                    let last = store.remove_uploads(step, &after).await?;
                    go_on(&mut after, last)
                }
                Phase::Experiments => {
                    let last = store.take_experiment(step, after_experiment).await?;
                    go_on(&mut after_experiment, last)
                }
                Phase::Remains | Phase::Files if plan.dry_run => true,
                Phase::Remains => !store.remove_remains(step).await?,
                Phase::Traces => !store.remove_traces(step).await?,
                Phase::Files => !store.remove_files(step).await?,
                Phase::Inventory => return self.take_inventory(&claim.project, soft).await,
                Phase::Blobs if plan.dry_run => return self.plan_blobs(claim, plan, soft).await,
                Phase::Blobs => return self.remove_blobs(claim, plan, soft).await,
                Phase::Proof => true,
            };
            if is_over {
                return Ok(true);
            }
        }
    }

    /// Counts what is in the store and not counted yet: what a crash or an upload that was refused left.
    async fn take_inventory(&self, project: &str, soft: &CancellationToken) -> Result<bool> {
        let mut found = self.blobs.project(project)?.list().chunks(ADOPTED_AT_ONCE);
        while let Some(chunk) = found.next().await {
            if soft.is_cancelled() {
                return Ok(false);
            }
            let mut blobs = Vec::with_capacity(chunk.len());
            for stored in chunk {
                let stored = stored?;
                let named = NamedBlob::new(stored.blob.digest, stored.blob.size_bytes);
                blobs.push((named, Timestamp::from(stored.stored_at)));
            }
            let adopted = self.stores.blobs.adopt_blobs(project, &blobs).await?;
            if adopted > 0 {
                tracing::info!(project, adopted, "blobs counted that no row named");
            }
        }
        Ok(true)
    }

    async fn remove_blobs(&self, claim: &Claim, plan: &CollectionPlan, soft: &CancellationToken) -> Result<bool> {
        let project = claim.project.as_str();
        let store = &self.stores.blobs;
        // What an interruption left, of this collection or long ago: nothing names it, and nothing can.
        loop {
            let left_before = self.clock.now() - LEFT_REMOVAL;
            let left = store
                .open_removals(project, left_before, Some(&claim.id), BLOBS_AT_ONCE)
                .await?;
            if left.is_empty() {
                break;
            }
            self.remove_begun(claim, plan, &left).await?;
        }
        let is_of_removed_project = self.stores.projects.was_removed(project, plan.deleted_before).await?;
        let mut after = None;
        loop {
            if soft.is_cancelled() {
                return Ok(false);
            }
            let old = store
                .list_old_blobs(project, after, plan.stored_before, BLOBS_AT_ONCE)
                .await?;
            let Some(last) = old.last() else {
                return Ok(true);
            };
            after = Some(last.digest);
            let unnamed = self.old_unnamed(project, old, is_of_removed_project, plan).await?;
            for chunk in unnamed.chunks(BEGUN_AT_ONCE) {
                let removal = Removal {
                    collection: Some(&claim.id),
                    is_of_removed_project,
                    stored_before: plan.stored_before,
                    now: self.clock.now(),
                };
                let begun = store.begin_removal(project, chunk, &removal).await?;
                self.remove_begun(claim, plan, &begun).await?;
            }
        }
    }

    /// Removes objects whose removal has begun, and writes it down. None is removed once another process may have taken the collection
    /// up: that one ends the removals, and what it ended can be stored again.
    async fn remove_begun(&self, claim: &Claim, plan: &CollectionPlan, begun: &[OldBlob]) -> Result<()> {
        let mut extended_at = None;
        for few in begun.chunks(REMOVALS_IN_FLIGHT) {
            let step = self.step(claim, plan);
            if extended_at.is_none_or(|at| step.now >= at + EXTENSION) {
                self.stores.collections.extend_claim(&step).await?;
                extended_at = Some(step.now);
            }
            remove_objects(&self.blobs, &claim.project, few).await?;
        }
        let step = self.step(claim, plan);
        self.stores.collections.record_removed(&step, begun).await
    }

    /// Those of the blobs that no row names, and that the store has had for long enough: steps of pipelines store without telling. What
    /// is in a removed project names nothing any more: nobody can reach it.
    async fn old_unnamed(
        &self,
        project: &str,
        old: Vec<OldBlob>,
        is_of_removed_project: bool,
        plan: &CollectionPlan,
    ) -> Result<Vec<OldBlob>> {
        let unnamed = if is_of_removed_project {
            old
        } else {
            self.stores.blobs.unnamed_blobs(project, &old).await?
        };
        let blobs = self.blobs.project(project)?;
        let stored_before = plan.stored_before;
        let looked: Vec<Option<OldBlob>> = stream::iter(unnamed)
            .map(move |blob| {
                let blobs = blobs.clone();
                async move {
                    let stored_at = blobs.stored_at(blob.digest).await?;
                    let is_old = stored_at.is_none_or(|at| Timestamp::from(at) <= stored_before);
                    Ok::<_, Error>(is_old.then_some(blob))
                }
            })
            .buffered(REMOVALS_IN_FLIGHT)
            .try_collect()
            .await?;
        Ok(looked.into_iter().flatten().collect())
    }

    /// Finds the blobs that a collection would remove.
    async fn plan_blobs(&self, claim: &Claim, plan: &CollectionPlan, soft: &CancellationToken) -> Result<bool> {
        let project = claim.project.as_str();
        let folders = self.stores.collections.planned_folders(&claim.id).await?;
        let folders: BTreeSet<String> = folders.into_iter().collect();
        let is_of_removed_project = self.stores.projects.was_removed(project, plan.deleted_before).await?;
        let mut after = None;
        loop {
            if soft.is_cancelled() {
                return Ok(false);
            }
            let old = self
                .stores
                .blobs
                .list_old_blobs(project, after, plan.stored_before, BLOBS_AT_ONCE)
                .await?;
            let Some(last) = old.last() else {
                return Ok(true);
            };
            after = Some(last.digest);
            let unnamed: BTreeSet<Digest> = self
                .old_unnamed(project, old.clone(), is_of_removed_project, plan)
                .await?
                .into_iter()
                .map(|blob| blob.digest)
                .collect();
            let mut objects = Vec::new();
            for blob in old {
                let would_go =
                    unnamed.contains(&blob.digest) || self.is_in_folders(project, blob.digest, &folders, plan).await?;
                if would_go {
                    objects.push(FoundObject {
                        kind: Freed::Blob,
                        id: blob.digest.to_string(),
                        outcome: CollectedOutcome::WouldBeFreed,
                        size_bytes: blob.size_bytes,
                        folder: None,
                        reason: None,
                    });
                }
            }
            let step = self.step(claim, plan);
            self.stores.collections.record_objects(&step, &objects).await?;
        }
    }

    /// Whether a blob is old and named by paths in these folders only, and by one of them at least.
    async fn is_in_folders(
        &self,
        project: &str,
        digest: Digest,
        folders: &BTreeSet<String>,
        plan: &CollectionPlan,
    ) -> Result<bool> {
        if folders.is_empty() || self.stores.blobs.is_named_otherwise(project, digest).await? {
            return Ok(false);
        }
        let mut after = String::new();
        let mut is_named = false;
        loop {
            let paths = self
                .stores
                .blobs
                .paths_of_blob(project, digest, &after, PATHS_AT_ONCE)
                .await?;
            let Some(last) = paths.last() else {
                break;
            };
            is_named = true;
            after.clone_from(last);
            for path in &paths {
                let path = ArtifactPath::parse(path)?;
                if !path.folders().any(|folder| folders.contains(folder)) {
                    return Ok(false);
                }
            }
        }
        let stored_at = self.blobs.project(project)?.stored_at(digest).await?;
        Ok(is_named && stored_at.is_none_or(|at| Timestamp::from(at) <= plan.stored_before))
    }

    /// The digest of the list of what was freed, or would be.
    async fn list_digest(&self, claim: &Claim) -> Result<Digest> {
        let mut digest = DigestBuilder::default();
        let mut page = PageRequest {
            after: None,
            limit: MAX_PAGE,
        };
        loop {
            let listed = self
                .stores
                .collections
                .list_collected(&claim.project, &claim.id, None, &page)
                .await?;
            let freed = listed
                .items
                .iter()
                .filter(|object| object.outcome != CollectedOutcome::Kept);
            for object in freed {
                digest.update(object.line().as_bytes());
            }
            page.after = match (listed.next_cursor, listed.items.last()) {
                (Some(_), Some(last)) => String::read(&object_place(last)),
                _ => return Ok(digest.finish()),
            };
        }
    }
}
