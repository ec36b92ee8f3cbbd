use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::cli::client::http_client;

#[test]
fn places_are_those_of_the_servers_own_store_or_of_their_owner() {
    let run = || Place::Run("r".to_owned());
    for (uri, expected) in [
        (
            "mlflow-artifacts:/1/r/artifacts",
            Place::Proxied("1/r/artifacts".to_owned()),
        ),
        ("mlflow-artifacts://host:5000/1/r/", Place::Proxied("1/r".to_owned())),
        ("mlflow-artifacts://host", Place::Proxied(String::new())),
        ("s3://bucket/1/r/artifacts", run()),
        ("/var/mlruns/1/r/artifacts", run()),
    ] {
        assert_eq!(Place::read(uri, run()), expected, "{uri}");
    }
}

#[test]
fn pauses_grow_and_end() {
    assert_eq!(pause(0, None), FIRST_PAUSE);
    assert_eq!(pause(2, None), 4 * FIRST_PAUSE);
    assert_eq!(pause(0, Some(Duration::from_secs(3))), Duration::from_secs(3));
    assert_eq!(pause(60, Some(Duration::from_hours(1))), LONGEST_PAUSE);
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_again() {
    const DONE: &str = "200 OK";
    // The program does the same when it starts.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Mlflow::new(http_client(None).unwrap(), url.parse().unwrap(), Credential::None, None);
    for answers in [&[""][..], &["504 Gateway Timeout"], &["503 Service Unavailable", DONE]] {
        let serve = async {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                // Without an answer the connection breaks off.
                if !answer.is_empty() {
                    let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        };
        let body = json!({});
        let (made, ()) = tokio::join!(server.create("models", &body), serve);
        assert_eq!(made.is_ok(), answers.contains(&DONE), "{answers:?}: {made:?}");
        if let Err(error) = made {
            assert!(error.to_string().contains("not known whether"), "{error:#}");
        }
    }
}

#[test]
fn pages_end() {
    let page = Page::read(json!({"runs": [1, 2], "next_page_token": "x"}), "runs");
    assert_eq!((page.items.len(), page.next.as_deref()), (2, Some("x")));
    let page = Page::read(json!({"next_page_token": ""}), "runs");
    assert_eq!((page.items.len(), page.next), (0, None));
}

#[test]
fn errors_are_told_in_the_servers_words() {
    assert_eq!(
        words_of(r#"{"error_code": "X", "message": "no such run"}"#),
        "no such run"
    );
    assert_eq!(words_of(r#"{"detail": "gone"}"#), "gone");
    assert_eq!(words_of("<html>"), "<html>");
}
