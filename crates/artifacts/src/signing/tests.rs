use std::sync::LazyLock;

use p256::pkcs8::EncodePrivateKey as _;
use proptest::prelude::*;

use super::*;

/// What `model_signing sign key` 1.1.1 made of a folder with `a.txt` ("hello"), `sub/b.bin` ("x") and the signature itself, and the
/// key's public half.
const MADE_ELSEWHERE: &[u8] = include_bytes!("made_elsewhere.json");
const ITS_KEY: &str = include_str!("made_elsewhere.pem");

/// A key on P-256 in the older form of PEM, and one on P-384 in the newer.
static KEY: LazyLock<String> = LazyLock::new(|| {
    let key = p256::SecretKey::from_slice(&[1; 32]).unwrap();
    key.to_sec1_pem(LineEnding::LF).unwrap().to_string()
});
static LARGE_KEY: LazyLock<String> = LazyLock::new(|| {
    let key = p384::SecretKey::from_slice(&[1; 48]).unwrap();
    key.to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
});

fn files(all: &[(&str, &str)]) -> Files {
    let each = all
        .iter()
        .map(|(name, content)| ((*name).to_owned(), Digest::of(content.as_bytes())));
    each.collect()
}

fn key(pem: &str) -> PrivateKey {
    PrivateKey::from_pem(pem).unwrap()
}

fn signed(files: &Files, pem: &str) -> Bundle {
    Bundle::read(Bundle::sign("m", files, &key(pem)).unwrap().as_bytes()).unwrap()
}

#[test]
fn what_was_signed_elsewhere_counts() {
    let bundle = Bundle::read(MADE_ELSEWHERE).unwrap();
    let key = PublicKey::from_pem(ITS_KEY).unwrap();
    assert_eq!(bundle.verify(std::slice::from_ref(&key)).unwrap(), &key);
    let text = std::str::from_utf8(MADE_ELSEWHERE).unwrap();
    assert!(text.contains(&key.hint().unwrap()), "keys have the same name there");
    // The signature itself is among what is left out.
    let folder = [
        ("a.txt", "hello\n"),
        ("sub/b.bin", "x\n"),
        ("model.sig", "any"),
        (".git/config", "any"),
    ];
    bundle.check(&files(&folder)).unwrap();
}

#[test]
fn what_is_signed_here_counts_for_its_key_alone() {
    let model = files(&[("MLmodel", "a"), ("data/model.pkl", "b")]);
    for (pem, other) in [(&KEY, &LARGE_KEY), (&LARGE_KEY, &KEY)] {
        let bundle = signed(&model, pem);
        assert_eq!(bundle.files(), &model);
        let keys = [key(other).public(), key(pem).public()];
        assert_eq!(bundle.verify(&keys).unwrap(), &keys[1]);
        assert!(matches!(bundle.verify(&keys[..1]), Err(SigningError::NotTrusted)));
        assert!(matches!(bundle.verify(&[]), Err(SigningError::NotTrusted)));
    }
}

#[test]
fn folders_must_be_what_was_signed() {
    let bundle = signed(&files(&[("a", "1"), ("b/c", "2")]), &KEY);
    bundle.check(&files(&[("a", "1"), ("b/c", "2")])).unwrap();
    for (folder, file, problem) in [
        (vec![("a", "1"), ("b/c", "other")], "`b/c`", "another one"),
        (vec![("a", "1")], "`b/c`", "missing"),
        (
            vec![("a", "1"), ("b/c", "2"), ("model.sig", "3")],
            "`model.sig`",
            "was not signed",
        ),
        (vec![], "`a`", "missing"),
    ] {
        let error = bundle.check(&files(&folder)).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(problem), "{error}");
    }
}

#[test]
fn a_model_of_one_file_is_signed_under_any_name() {
    for name in [ONLY_FILE, "model.onnx"] {
        let bundle = signed(&files(&[(name, "1"), ("readme", "2")]), &KEY);
        bundle.check(&files(&[(ONLY_FILE, "1")])).unwrap();
        let error = bundle.check(&files(&[(ONLY_FILE, "3")])).unwrap_err();
        assert_eq!(error.reason(), "SIGNATURE_DIFFERS");
    }
}

/// What is changed in a statement.
type Change<'a> = &'a dyn Fn(&mut Value);

#[test]
fn a_bundle_that_was_changed_is_refused() {
    let good: Value = serde_json::from_str(&Bundle::sign("m", &files(&[("a", "1")]), &key(&KEY)).unwrap()).unwrap();
    let payload = |change: &dyn Fn(&mut Value)| {
        let text = good.pointer("/dsseEnvelope/payload").unwrap().as_str().unwrap();
        let mut statement: Value = serde_json::from_slice(&BASE64_STANDARD.decode(text).unwrap()).unwrap();
        change(&mut statement);
        let mut changed = good.clone();
        changed["dsseEnvelope"]["payload"] = BASE64_STANDARD.encode(statement.to_string()).into();
        Bundle::read(changed.to_string().as_bytes())
    };
    let other = Digest::of(b"2");
    // As a whole it makes sense; only the signature tells.
    let swapped = payload(&|statement| {
        statement["predicate"]["resources"][0]["digest"] = other.to_hex().into();
        statement["subject"][0]["digest"]["sha256"] = root([&other]).to_hex().into();
    });
    assert!(matches!(
        swapped.unwrap().verify(&[key(&KEY).public()]),
        Err(SigningError::NotTrusted)
    ));
    let refused: [(&str, Change<'_>); 7] = [
        ("subject", &|statement| {
            statement["predicate"]["resources"][0]["digest"] = other.to_hex().into();
        }),
        ("about 0 models", &|statement| statement["subject"] = json!([])),
        ("_type", &|statement| statement["_type"] = "other".into()),
        ("predicateType", &|statement| {
            statement["predicateType"] = "other".into();
        }),
        ("method", &|statement| {
            statement["predicate"]["serialization"]["method"] = "shards".into();
        }),
        ("algorithm", &|statement| {
            statement["predicate"]["resources"][0]["algorithm"] = "blake2b".into();
        }),
        ("twice", &|statement| {
            let resources = statement["predicate"]["resources"].as_array_mut().unwrap();
            resources.push(resources[0].clone());
        }),
    ];
    for (named, change) in refused {
        let error = payload(change).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
    for (place, value) in [
        ("/mediaType", json!("application/json")),
        ("/dsseEnvelope/payloadType", json!("text/plain")),
        ("/dsseEnvelope/signatures", json!([])),
        ("/dsseEnvelope/payload", json!("?")),
    ] {
        let mut changed = good.clone();
        *changed.pointer_mut(place).unwrap() = value;
        let error = Bundle::read(changed.to_string().as_bytes()).unwrap_err();
        assert_eq!(error.reason(), "INVALID_BUNDLE", "{place}");
    }
}

#[test]
fn keys_of_other_kinds_are_refused_with_the_remedy() {
    for bad in ["", "no key", ITS_KEY] {
        let error = PrivateKey::from_pem(bad).unwrap_err();
        assert_eq!(error.reason(), "INVALID_KEY");
        assert!(error.to_string().contains("openssl"), "{error}");
    }
    assert!(PublicKey::from_pem(&KEY).unwrap_err().to_string().contains("openssl"));
}

#[test]
fn lists_of_folders_are_read() {
    let digest = Digest::of(b"1");
    let list = json!({"mlflow": {"files": [{"path": "MLmodel", "digest": digest, "size_bytes": 1}]}}).to_string();
    assert_eq!(read_list(list.as_bytes()).unwrap(), files(&[("MLmodel", "1")]));
    assert_eq!(read_list(b"{}").unwrap_err().reason(), "INVALID_LIST");
}

proptest! {
    #[test]
    fn nonsense_is_refused(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Bundle::read(&content).is_err());
    }
}
