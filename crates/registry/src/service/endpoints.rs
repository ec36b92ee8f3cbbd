//! Endpoints as desired state, and what the gateways made of it.

use modelyard_auth::{Action, Caller, Kind, Resource, audit::Operation};
use modelyard_common::name::check_name;
use serde_json::Value;

use super::Registry;
use crate::{
    error::{Error, Result},
    model::{
        desired::DesiredEndpoint,
        endpoint::{EndpointKey, EndpointResource, EndpointSpec, Outcome},
        event::Event,
        page::{Page, PageRequest},
        report::{EndpointStatus, MAX_MESSAGE_BYTES, MAX_NODE_BYTES, MAX_REPORTED_ENDPOINTS, NodeReport},
        traffic::Traffic,
    },
    store::{EndpointRecord, TrafficChange},
};

impl Registry {
    /// Makes the spec of an endpoint this one.
    #[tracing::instrument(name = "registry.put_endpoint", skip_all, fields(%project, %name))]
    pub async fn put_endpoint(
        &self,
        caller: &Caller,
        project: &str,
        name: &str,
        spec: &Value,
    ) -> Result<(Outcome, EndpointResource)> {
        self.enter(
            caller,
            Action::EndpointWrite,
            Resource::named(Kind::Endpoint, project, name),
        )
        .await?;
        let key = endpoint_key(project, name)?;
        let spec = EndpointSpec::read(name, spec)?;
        let event = caller.event(
            Action::EndpointWrite,
            Operation::Apply,
            &Resource::named(Kind::Endpoint, project, name),
        );
        let outcome = self.stores.endpoints.put_endpoint(&key, &spec, &event).await?;
        if outcome != Outcome::Unchanged {
            self.desired.notify();
        }
        let endpoint = self.find_endpoint(&key).await?;
        Ok((outcome, self.resource(endpoint)))
    }

    /// An endpoint.
    pub async fn get_endpoint(&self, caller: &Caller, project: &str, name: &str) -> Result<EndpointResource> {
        self.enter(
            caller,
            Action::EndpointRead,
            Resource::named(Kind::Endpoint, project, name),
        )
        .await?;
        let endpoint = self.find_endpoint(&endpoint_key(project, name)?).await?;
        Ok(self.resource(endpoint))
    }

    /// An endpoint as a gateway shall serve it.
    pub async fn get_desired_endpoint(&self, caller: &Caller, project: &str, name: &str) -> Result<DesiredEndpoint> {
        self.enter(
            caller,
            Action::EndpointRead,
            Resource::named(Kind::Endpoint, project, name),
        )
        .await?;
        let endpoint = self.find_endpoint(&endpoint_key(project, name)?).await?;
        let EndpointRecord {
            key,
            spec,
            routes,
            traffic,
            ..
        } = endpoint;
        Ok(DesiredEndpoint::new(key, spec, routes, traffic.as_ref()))
    }

    async fn find_endpoint(&self, key: &EndpointKey) -> Result<EndpointRecord> {
        let found = self.stores.endpoints.find_endpoint(key).await?;
        found.ok_or_else(|| no_endpoint(&key.name))
    }

    /// The endpoints by name.
    pub async fn list_endpoints(
        &self,
        caller: &Caller,
        project: &str,
        page: &PageRequest<String>,
    ) -> Result<Page<EndpointResource>> {
        self.enter(caller, Action::EndpointRead, Resource::project(project))
            .await?;
        let page = self.stores.endpoints.list_endpoints(project, page).await?;
        let items = page.items.into_iter().map(|endpoint| self.resource(endpoint));
        Ok(Page {
            items: items.collect(),
            next_cursor: page.next_cursor,
        })
    }

    /// Brings back what an endpoint served before: away from what is on its way, or, where nothing is, from what serves.
    #[tracing::instrument(name = "registry.roll_back", skip_all, fields(%project, %name))]
    pub async fn roll_back_endpoint(&self, caller: &Caller, project: &str, name: &str) -> Result<EndpointResource> {
        let resource = Resource::named(Kind::Endpoint, project, name);
        self.enter(caller, Action::EndpointWrite, resource).await?;
        let key = endpoint_key(project, name)?;
        let event = caller.event(
            Action::EndpointWrite,
            Operation::Restore,
            &Resource::named(Kind::Endpoint, project, name),
        );
        let changed = self
            .stores
            .traffic
            .change_traffic(&key, TrafficChange::RollBack, &event)
            .await?;
        if changed.is_none() {
            let endpoint = self.find_endpoint(&key).await?;
            return Err(Error::State(format!(
                "endpoint `{}` has nothing to go back to: it has not served yet",
                endpoint.key.name
            )));
        }
        self.desired.notify();
        let endpoint = self.find_endpoint(&key).await?;
        Ok(self.resource(endpoint))
    }

    /// Removes an endpoint.
    pub async fn delete_endpoint(&self, caller: &Caller, project: &str, name: &str) -> Result<()> {
        self.enter(
            caller,
            Action::EndpointWrite,
            Resource::named(Kind::Endpoint, project, name),
        )
        .await?;
        let key = endpoint_key(project, name)?;
        let event = caller.event(
            Action::EndpointWrite,
            Operation::Delete,
            &Resource::named(Kind::Endpoint, project, name),
        );
        if !self.stores.endpoints.delete_endpoint(&key, &event).await? {
            return Err(no_endpoint(name));
        }
        self.desired.notify();
        Ok(())
    }

    fn resource(&self, endpoint: EndpointRecord) -> EndpointResource {
        let serving = endpoint.traffic.as_ref().map(Traffic::effective);
        let serving = serving.as_ref().unwrap_or(&endpoint.routes);
        let status = EndpointStatus::new(
            endpoint.revision,
            &endpoint.routes,
            serving,
            endpoint.nodes,
            self.clock.now(),
        );
        EndpointResource {
            kind: "Endpoint".to_owned(),
            name: endpoint.key.name,
            project: endpoint.key.project,
            spec: endpoint.spec,
            created_at: endpoint.created_at,
            updated_at: endpoint.updated_at,
            resolved: endpoint.routes,
            traffic: endpoint.traffic,
            status,
        }
    }

    /// Replaces what a node said before. The time of the report is the registry's, so that clocks need not agree.
    pub async fn report_status(&self, caller: &Caller, mut report: NodeReport) -> Result<()> {
        self.enter(caller, Action::EndpointWatch, Resource::INSTALLATION)
            .await?;
        let node = &report.node;
        if node.is_empty() || node.len() > MAX_NODE_BYTES || node.chars().any(char::is_control) {
            return Err(Error::request(format!(
                "the name of the node has {} bytes: use 1 to {MAX_NODE_BYTES} on one line",
                node.len()
            )));
        }
        if report.endpoints.len() > MAX_REPORTED_ENDPOINTS {
            return Err(Error::request(format!(
                "the report is about {} endpoints: report at most {MAX_REPORTED_ENDPOINTS}",
                report.endpoints.len()
            )));
        }
        // The last word counts, where a report speaks of an endpoint twice.
        report.endpoints.reverse();
        report.endpoints.sort_by(|left, right| left.key.cmp(&right.key));
        report.endpoints.dedup_by(|left, right| left.key == right.key);
        for route in report.endpoints.iter_mut().flat_map(|endpoint| &mut endpoint.routes) {
            route.message.retain(|c| c != '\0');
            let end = route.message.floor_char_boundary(MAX_MESSAGE_BYTES);
            route.message.truncate(end);
        }
        report.reported_at = self.clock.now();
        self.stores.endpoints.save_report(&report).await
    }

    /// The events after a revision, oldest first.
    pub async fn list_events(&self, caller: &Caller, project: &str, page: &PageRequest<u64>) -> Result<Page<Event>> {
        self.enter(caller, Action::EventRead, Resource::project(project))
            .await?;
        self.stores.events.list_events(project, page).await
    }
}

fn endpoint_key(project: &str, name: &str) -> Result<EndpointKey> {
    check_name("an endpoint", name)?;
    Ok(EndpointKey {
        project: project.to_owned(),
        name: name.to_owned(),
    })
}

fn no_endpoint(name: &str) -> Error {
    Error::not_found("endpoint", name, "declare it first")
}
