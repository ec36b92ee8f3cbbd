-- A metric of a run is a series with a number. Its points stand under the number: less to write, to compare and to read.
CREATE TABLE series (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    -- The point with the greatest (step, timestamp, value).
    timestamp BIGINT NOT NULL,
    step BIGINT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    is_nan BIGINT NOT NULL,
    experiment_id BIGINT NOT NULL,
    UNIQUE (run_id, key)
);
INSERT INTO series (run_id, key, timestamp, step, value, is_nan, experiment_id)
SELECT run_id, key, timestamp, step, value, is_nan, experiment_id FROM run_metric_latest ORDER BY run_id, key;

-- In the order that tells which point is the latest. A chart finds its steps in it, too.
CREATE TABLE point (
    series_id BIGINT NOT NULL REFERENCES series (id) ON DELETE CASCADE,
    step BIGINT NOT NULL,
    timestamp BIGINT NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    is_nan BIGINT NOT NULL,
    PRIMARY KEY (series_id, step, timestamp, value, is_nan)
);
INSERT INTO point (series_id, step, timestamp, value, is_nan)
SELECT series.id, run_metric.step, run_metric.timestamp, run_metric.value, run_metric.is_nan
FROM series JOIN run_metric ON run_metric.run_id = series.run_id AND run_metric.key = series.key
ORDER BY series.id, run_metric.step;

DROP TABLE run_metric;
DROP TABLE run_metric_latest;
ALTER TABLE series RENAME TO run_metric;
ALTER TABLE point RENAME TO run_metric_point;

-- The best runs of an experiment in order.
CREATE INDEX run_metric_value ON run_metric (experiment_id, key, is_nan, value, run_id);
