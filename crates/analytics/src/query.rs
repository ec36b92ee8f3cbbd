//! Queries: one SELECT over named tables, which can change nothing.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use datafusion::{
    catalog::{
        CatalogProvider as _, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider, TableProvider,
    },
    common::ParamValues,
    datasource::empty::EmptyTable,
    error::DataFusionError,
    execution::{
        SendableRecordBatchStream, SessionStateBuilder,
        context::{SQLOptions, SessionContext, SessionState},
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::FairSpillPool,
        runtime_env::RuntimeEnvBuilder,
    },
    physical_plan::stream::RecordBatchStreamAdapter,
    prelude::SessionConfig,
    scalar::ScalarValue,
    sql::{
        parser::{DFParser, Statement},
        sqlparser::ast,
    },
};
use deltalake::delta_datafusion::{DeltaScanConfig, DeltaScanNext};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::ObjectStore;
use tokio::sync::mpsc;

use crate::{
    analytics::AnalyticsOptions,
    error::{Error, Result},
    handle::Tables,
    table_name::{TableName, root_url},
};

/// The longest text of a query, in bytes.
pub const MAX_SQL_BYTES: usize = 256 * 1024;
/// The largest result that is collected, in bytes of memory.
pub const MAX_COLLECTED_BYTES: usize = 256 * 1024 * 1024;
/// How many batches wait for a slow reader.
const BATCHES_AHEAD: usize = 2;

const CATALOG: &str = "modelyard";
const SCHEMA: &str = "public";

/// A table that a query may name.
#[derive(Debug, Clone)]
pub struct QueryTable {
    /// What the query calls it.
    pub alias: String,
    /// The table.
    pub table: TableName,
    /// What an empty table of these columns stands in for while there is no such table; without it the query fails then.
    pub schema: Option<SchemaRef>,
}

/// A collected result.
#[derive(Debug, Clone)]
pub struct QueryResult {
    /// Its columns, also where it has no rows.
    pub schema: SchemaRef,
    /// Its rows.
    pub batches: Vec<RecordBatch>,
}

impl QueryResult {
    /// The number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// What all queries share: functions, memory, the object store. Its catalog stays empty; each query has its own.
pub(crate) fn session(store: Arc<dyn ObjectStore>, options: &AnalyticsOptions) -> Result<SessionState> {
    let failed = |error: DataFusionError| Error::internal("preparing queries", error);
    let mode = options
        .spill_dir
        .clone()
        .map_or(DiskManagerMode::OsTmpDirectory, |folder| {
            DiskManagerMode::Directories(vec![folder])
        });
    let disk = DiskManagerBuilder::default()
        .with_mode(mode)
        .with_max_temp_directory_size(options.spill_limit_bytes);
    let memory = usize::try_from(options.memory_limit_bytes).unwrap_or(usize::MAX);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
        .with_disk_manager_builder(disk)
        .build_arc()
        .map_err(failed)?;
    runtime.register_object_store(&root_url()?, store);
    let config = SessionConfig::new()
        .with_target_partitions(options.threads.max(1))
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_create_default_catalog_and_schema(false)
        // Callers get the types that the tables were written with.
        .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
        .set_bool("datafusion.execution.parquet.pushdown_filters", true)
        .set_bool("datafusion.execution.parquet.bloom_filter_on_read", true);
    Ok(SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .build())
}

/// One SELECT, or an EXPLAIN of one.
fn parse(sql: &str) -> Result<Statement> {
    let refuse = |problem: String| Error::InvalidQuery { problem };
    if sql.len() > MAX_SQL_BYTES {
        return Err(refuse(format!(
            "its text has {} bytes, and at most {MAX_SQL_BYTES} are possible",
            sql.len()
        )));
    }
    let mut statements = DFParser::parse_sql(sql).map_err(Error::of_query)?;
    let (Some(statement), None) = (statements.pop_front(), statements.pop_front()) else {
        return Err(refuse("write exactly one SELECT".to_owned()));
    };
    if !is_select(&statement) {
        return Err(refuse(
            "only SELECT is possible: nothing can be changed through a query".to_owned(),
        ));
    }
    Ok(statement)
}

fn is_select(statement: &Statement) -> bool {
    match statement {
        Statement::Statement(statement) => matches!(**statement, ast::Statement::Query(_)),
        Statement::Explain(explain) => is_select(&explain.statement),
        _ => false,
    }
}

/// Plans a query and starts it.
pub(crate) async fn start(
    tables: Arc<Tables>,
    session: SessionState,
    sql: String,
    query_tables: Vec<QueryTable>,
    params: Vec<(String, ScalarValue)>,
) -> Result<SendableRecordBatchStream> {
    let statement = parse(&sql)?;
    let schema = Arc::new(MemorySchemaProvider::new());
    for query_table in query_tables {
        let provider = provider_of(&tables, &query_table).await?;
        let registered =
            datafusion::catalog::SchemaProvider::register_table(&*schema, query_table.alias.clone(), provider);
        registered.map_err(|_| Error::InvalidQuery {
            problem: format!("two of its tables are called `{}`", query_table.alias),
        })?;
    }
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(SCHEMA, schema).map_err(Error::of_query)?;
    let catalogs = MemoryCatalogProviderList::new();
    datafusion::catalog::CatalogProviderList::register_catalog(&catalogs, CATALOG.to_owned(), Arc::new(catalog));
    let state = SessionStateBuilder::new_from_existing(session)
        .with_catalog_list(Arc::new(catalogs))
        .build();

    let plan = state.statement_to_plan(statement).await.map_err(Error::of_query)?;
    let read_only = SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    read_only.verify_plan(&plan).map_err(Error::of_query)?;
    let plan = plan
        .with_param_values(ParamValues::from(params))
        .map_err(Error::of_query)?;
    let frame = SessionContext::new_with_state(state)
        .execute_logical_plan(plan)
        .await
        .map_err(Error::of_query)?;
    frame.execute_stream().await.map_err(Error::of_query)
}

async fn provider_of(tables: &Tables, query_table: &QueryTable) -> Result<Arc<dyn TableProvider>> {
    let handle = tables.handle(&query_table.table);
    let Some(table) = handle.newest().await? else {
        return match &query_table.schema {
            Some(schema) => Ok(Arc::new(EmptyTable::new(all_nullable(schema)))),
            None => Err(Error::TableNotFound {
                table: query_table.table.clone(),
            }),
        };
    };
    let failed = |error| Error::of_delta(&query_table.table, "reading", error);
    let snapshot = table.snapshot().map_err(failed)?.snapshot().clone();
    let mut config = DeltaScanConfig::new().with_wrap_partition_values(false);
    config.schema_force_view_types = false;
    let scan = DeltaScanNext::new(snapshot, config).map_err(|error| Error::internal("reading a table", error))?;
    Ok(Arc::new(scan))
}

/// As the columns of a table are.
fn all_nullable(schema: &Schema) -> SchemaRef {
    let fields = schema
        .fields()
        .iter()
        .map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Hands a result's batches from the threads of analytics to the caller's. Ends when the caller drops its end.
pub(crate) fn hand_over(
    runtime: &tokio::runtime::Handle,
    mut result: SendableRecordBatchStream,
) -> SendableRecordBatchStream {
    let schema = result.schema();
    let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
    runtime.spawn(async move {
        loop {
            let next = tokio::select! {
                () = sender.closed() => break,
                next = result.next() => next,
            };
            let Some(batch) = next else { break };
            if sender.send(batch).await.is_err() {
                break;
            }
        }
    });
    let batches = stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

/// Collects a result within its limits.
pub(crate) async fn collect(mut result: SendableRecordBatchStream, max_rows: usize) -> Result<QueryResult> {
    let schema = result.schema();
    let (mut batches, mut rows, mut bytes) = (Vec::new(), 0, 0);
    while let Some(batch) = result.try_next().await.map_err(Error::of_query)? {
        rows += batch.num_rows();
        bytes += batch.get_array_memory_size();
        let limit = if rows > max_rows {
            format!("{max_rows} rows")
        } else if bytes > MAX_COLLECTED_BYTES {
            format!("{MAX_COLLECTED_BYTES} bytes")
        } else {
            batches.push(batch);
            continue;
        };
        return Err(Error::ResultTooLarge { limit });
    }
    Ok(QueryResult { schema, batches })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_select_is_parsed() {
        for good in [
            "select 1",
            "WITH a AS (SELECT 1) SELECT * FROM a;",
            "EXPLAIN ANALYZE SELECT 1",
            "VALUES (1)",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        let long = format!("SELECT '{}'", "x".repeat(MAX_SQL_BYTES));
        for wrong in [
            "",
            "SELECT 1; SELECT 2",
            "INSERT INTO t VALUES (1)",
            "DELETE FROM t",
            "DROP TABLE t",
            "CREATE TABLE t AS SELECT 1",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "COPY (SELECT 1) TO '/tmp/x.csv'",
            "EXPLAIN COPY (SELECT 1) TO '/tmp/x.csv'",
            "SET datafusion.execution.target_partitions = 99",
            "SHOW TABLES",
            "SELEC 1",
            &long,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
