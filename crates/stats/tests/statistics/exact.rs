//! Exact drift, beside Evidently's.

use arrow::{array::RecordBatch, compute::cast, datatypes::DataType};
use modelyard_stats::{DriftOptions, DriftTest, Error, exact_drift};

use super::{batch, column, texts, with_test};

/// Name, rows of the reference, of the current data, test asked for, test applied, value, verdict.
type Expected = (&'static str, usize, usize, &'static str, &'static str, f64, bool);

/// Computed by Evidently 0.7.23 (pandas 2.3.3, NumPy 2.4.6, SciPy 1.17.1) on the same columns: `get_stattest` chooses or finds
/// the test, which is called on the two series.
const EVIDENTLY: &[Expected] = &[
    ("bell", 3000, 2000, "auto", "wasserstein", 0.45133329544300954, true),
    ("bell", 3000, 2000, "psi", "psi", 0.2540508131297843, true),
    ("bell", 3000, 2000, "ks", "ks", 8.663499150101468e-33, true),
    (
        "bell",
        3000,
        2000,
        "wasserstein",
        "wasserstein",
        0.45133329544300954,
        true,
    ),
    (
        "bell",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.16584854331270601,
        true,
    ),
    ("bell", 3000, 2000, "hellinger", "hellinger", 0.17543653203798554, true),
    ("whole", 3000, 2000, "auto", "wasserstein", 0.21288003681202186, true),
    ("whole", 3000, 2000, "psi", "psi", 0.11759726473229759, true),
    ("whole", 3000, 2000, "ks", "ks", 2.7608753256735317e-05, true),
    (
        "whole",
        3000,
        2000,
        "wasserstein",
        "wasserstein",
        0.21288003681202186,
        true,
    ),
    (
        "whole",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.10295391301521362,
        true,
    ),
    ("whole", 3000, 2000, "hellinger", "hellinger", 0.11376914796224981, true),
    ("few", 3000, 2000, "auto", "jensenshannon", 0.15910232075899086, true),
    ("few", 3000, 2000, "psi", "psi", 0.46874276305460294, true),
    (
        "few",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.15910232075899086,
        true,
    ),
    ("few", 3000, 2000, "hellinger", "hellinger", 0.0447331741065981, false),
    ("flag", 3000, 2000, "auto", "jensenshannon", 0.04384843731043823, false),
    ("flag", 3000, 2000, "psi", "psi", 0.015395976324094458, false),
    (
        "flag",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.04384843731043823,
        false,
    ),
    ("flag", 3000, 2000, "hellinger", "hellinger", 0.0, false),
    ("name", 3000, 2000, "auto", "jensenshannon", 0.06865719638547028, false),
    ("name", 3000, 2000, "psi", "psi", 0.04441843845941234, false),
    (
        "name",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.06865719638547028,
        false,
    ),
    ("name", 3000, 2000, "hellinger", "hellinger", 0.07468022466142808, false),
    ("name", 3000, 2000, "chisquare", "chisquare", 0.0, true),
    ("bell", 400, 300, "auto", "ks", 1.620294862059555e-07, true),
    ("bell", 400, 300, "psi", "psi", 0.3432908151410502, true),
    ("bell", 400, 300, "ks", "ks", 1.620294862059555e-07, true),
    ("bell", 400, 300, "wasserstein", "wasserstein", 0.4831062569245541, true),
    (
        "bell",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.18646332391166728,
        true,
    ),
    ("bell", 400, 300, "hellinger", "hellinger", 0.19836227007315016, true),
    ("whole", 400, 300, "auto", "ks", 0.13083281508290037, false),
    ("whole", 400, 300, "psi", "psi", 0.2530838996509966, true),
    ("whole", 400, 300, "ks", "ks", 0.13083281508290037, false),
    (
        "whole",
        400,
        300,
        "wasserstein",
        "wasserstein",
        0.2006526365929619,
        true,
    ),
    (
        "whole",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.14732821732181947,
        true,
    ),
    ("whole", 400, 300, "hellinger", "hellinger", 0.13427531889695282, true),
    ("few", 400, 300, "auto", "chisquare", 0.0, true),
    ("few", 400, 300, "psi", "psi", 0.5464672222373259, true),
    (
        "few",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.17108315266158117,
        true,
    ),
    ("few", 400, 300, "hellinger", "hellinger", 0.054282555546526, false),
    ("flag", 400, 300, "auto", "z", 0.03803668107030256, true),
    ("flag", 400, 300, "psi", "psi", 0.024974086522074702, false),
    (
        "flag",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.05582821523157742,
        false,
    ),
    ("flag", 400, 300, "hellinger", "hellinger", 0.0, false),
    ("name", 400, 300, "auto", "chisquare", 0.0, true),
    ("name", 400, 300, "psi", "psi", 0.04995904387909399, false),
    (
        "name",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.07722917727351775,
        false,
    ),
    ("name", 400, 300, "hellinger", "hellinger", 0.08052957910437575, false),
    ("name", 400, 300, "chisquare", "chisquare", 0.0, true),
];

#[test]
fn exact_drift_equals_evidently() {
    let seeds = ["bell", "whole", "few", "flag", "name"];
    for &(name, before, now, asked, applied, value, drifted) in EVIDENTLY {
        let seed = seeds.iter().position(|&seed| seed == name).unwrap() as u64;
        let reference = batch([(name, column(name, before, 10 + seed, false))]);
        let current = batch([(name, column(name, now, 20 + seed, true))]);
        let options = with_test(asked.parse().unwrap());
        let drift = exact_drift(&[reference], &[current], &options).unwrap();
        let found = &drift.columns[0];
        let case = format!("{name} {before} {now} {asked}: {found:?}");
        assert_eq!(found.test.as_str(), applied, "{case}");
        assert_eq!(found.drifted, drifted, "{case}");
        let found = found.value.unwrap();
        assert!(
            (found - value).abs() <= 1e-9 * value.abs() + 1e-300,
            "{case}, expected {value}"
        );
    }
}

#[test]
fn exact_drift_does_not_depend_on_batches_or_text_types() {
    let (reference, current) = (texts(900, 1, 8.0), texts(700, 2, 9.0));
    let whole = exact_drift(
        &[batch([("a", reference.clone())])],
        &[batch([("a", current.clone())])],
        &DriftOptions::default(),
    )
    .unwrap();
    for data_type in [
        DataType::LargeUtf8,
        DataType::Utf8View,
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
    ] {
        let parts: Vec<RecordBatch> = [(0, 250), (250, 650)]
            .map(|(start, rows)| cast(&reference.slice(start, rows), &data_type).unwrap())
            .map(|part| batch([("a", part)]))
            .into();
        let current = batch([("a", cast(&current, &data_type).unwrap())]);
        let drift = exact_drift(&parts, &[current], &DriftOptions::default()).unwrap();
        assert_eq!(drift, whole, "{data_type}");
    }
}

#[test]
fn numbers_named_categorical_are_compared_by_value() {
    let (a, b) = (column("few", 3_000, 1, false), column("few", 3_000, 2, true));
    let as_numbers = with_test(DriftTest::JensenShannon);
    let mut as_names = as_numbers.clone();
    as_names.categorical.insert("few".to_owned());
    let drift =
        |options: &DriftOptions| exact_drift(&[batch([("few", a.clone())])], &[batch([("few", b.clone())])], options);
    let (numbers, names) = (drift(&as_numbers).unwrap(), drift(&as_names).unwrap());
    let (numbers, names) = (numbers.columns[0].value.unwrap(), names.columns[0].value.unwrap());
    assert!((numbers - names).abs() < 1e-12);
    as_names.test = DriftTest::Wasserstein;
    assert!(matches!(drift(&as_names), Err(Error::TestNotApplicable { .. })));
}
