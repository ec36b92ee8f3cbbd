//! Exact drift, beside Evidently's.

use arrow::{array::RecordBatch, compute::cast, datatypes::DataType};
use modelyard_stats::{DriftOptions, DriftTest, Error, exact_drift};

use super::{batch, column, texts, with_test};

/// Name, rows of the reference, of the current data, test asked for, test applied, value, verdict.
type Expected = (&'static str, usize, usize, &'static str, &'static str, f64, bool);

/// Computed by Evidently 0.7.23 (pandas 2.3.3, NumPy 2.4.6, SciPy 1.17.1) on the same columns: `get_stattest` chooses or finds
/// the test, which is called on the two series.
const EVIDENTLY: &[Expected] = &[
    (
        "bell",
        3000,
        2000,
        "auto",
        "wasserstein",
        0.451_333_295_443_009_54,
        true,
    ),
    ("bell", 3000, 2000, "psi", "psi", 0.254_050_813_129_784_3, true),
    ("bell", 3000, 2000, "ks", "ks", 8.663_499_150_101_468e-33, true),
    (
        "bell",
        3000,
        2000,
        "wasserstein",
        "wasserstein",
        0.451_333_295_443_009_54,
        true,
    ),
    (
        "bell",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.165_848_543_312_706_01,
        true,
    ),
    (
        "bell",
        3000,
        2000,
        "hellinger",
        "hellinger",
        0.175_436_532_037_985_54,
        true,
    ),
    (
        "whole",
        3000,
        2000,
        "auto",
        "wasserstein",
        0.212_880_036_812_021_86,
        true,
    ),
    ("whole", 3000, 2000, "psi", "psi", 0.117_597_264_732_297_59, true),
    ("whole", 3000, 2000, "ks", "ks", 2.760_875_325_673_531_7e-05, true),
    (
        "whole",
        3000,
        2000,
        "wasserstein",
        "wasserstein",
        0.212_880_036_812_021_86,
        true,
    ),
    (
        "whole",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.102_953_913_015_213_62,
        true,
    ),
    (
        "whole",
        3000,
        2000,
        "hellinger",
        "hellinger",
        0.113_769_147_962_249_81,
        true,
    ),
    (
        "few",
        3000,
        2000,
        "auto",
        "jensenshannon",
        0.159_102_320_758_990_86,
        true,
    ),
    ("few", 3000, 2000, "psi", "psi", 0.468_742_763_054_602_94, true),
    (
        "few",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.159_102_320_758_990_86,
        true,
    ),
    (
        "few",
        3000,
        2000,
        "hellinger",
        "hellinger",
        0.044_733_174_106_598_1,
        false,
    ),
    (
        "flag",
        3000,
        2000,
        "auto",
        "jensenshannon",
        0.043_848_437_310_438_23,
        false,
    ),
    ("flag", 3000, 2000, "psi", "psi", 0.015_395_976_324_094_458, false),
    (
        "flag",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.043_848_437_310_438_23,
        false,
    ),
    ("flag", 3000, 2000, "hellinger", "hellinger", 0.0, false),
    (
        "name",
        3000,
        2000,
        "auto",
        "jensenshannon",
        0.068_657_196_385_470_28,
        false,
    ),
    ("name", 3000, 2000, "psi", "psi", 0.044_418_438_459_412_34, false),
    (
        "name",
        3000,
        2000,
        "jensenshannon",
        "jensenshannon",
        0.068_657_196_385_470_28,
        false,
    ),
    (
        "name",
        3000,
        2000,
        "hellinger",
        "hellinger",
        0.074_680_224_661_428_08,
        false,
    ),
    ("name", 3000, 2000, "chisquare", "chisquare", 0.0, true),
    ("bell", 400, 300, "auto", "ks", 1.620_294_862_059_555e-07, true),
    ("bell", 400, 300, "psi", "psi", 0.343_290_815_141_050_2, true),
    ("bell", 400, 300, "ks", "ks", 1.620_294_862_059_555e-07, true),
    (
        "bell",
        400,
        300,
        "wasserstein",
        "wasserstein",
        0.483_106_256_924_554_1,
        true,
    ),
    (
        "bell",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.186_463_323_911_667_28,
        true,
    ),
    (
        "bell",
        400,
        300,
        "hellinger",
        "hellinger",
        0.198_362_270_073_150_16,
        true,
    ),
    ("whole", 400, 300, "auto", "ks", 0.130_832_815_082_900_37, false),
    ("whole", 400, 300, "psi", "psi", 0.253_083_899_650_996_6, true),
    ("whole", 400, 300, "ks", "ks", 0.130_832_815_082_900_37, false),
    (
        "whole",
        400,
        300,
        "wasserstein",
        "wasserstein",
        0.200_652_636_592_961_9,
        true,
    ),
    (
        "whole",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.147_328_217_321_819_47,
        true,
    ),
    (
        "whole",
        400,
        300,
        "hellinger",
        "hellinger",
        0.134_275_318_896_952_82,
        true,
    ),
    ("few", 400, 300, "auto", "chisquare", 0.0, true),
    ("few", 400, 300, "psi", "psi", 0.546_467_222_237_325_9, true),
    (
        "few",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.171_083_152_661_581_17,
        true,
    ),
    ("few", 400, 300, "hellinger", "hellinger", 0.054_282_555_546_526, false),
    ("flag", 400, 300, "auto", "z", 0.038_036_681_070_302_56, true),
    ("flag", 400, 300, "psi", "psi", 0.024_974_086_522_074_702, false),
    (
        "flag",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.055_828_215_231_577_42,
        false,
    ),
    ("flag", 400, 300, "hellinger", "hellinger", 0.0, false),
    ("name", 400, 300, "auto", "chisquare", 0.0, true),
    ("name", 400, 300, "psi", "psi", 0.049_959_043_879_093_99, false),
    (
        "name",
        400,
        300,
        "jensenshannon",
        "jensenshannon",
        0.077_229_177_273_517_75,
        false,
    ),
    (
        "name",
        400,
        300,
        "hellinger",
        "hellinger",
        0.080_529_579_104_375_75,
        false,
    ),
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
