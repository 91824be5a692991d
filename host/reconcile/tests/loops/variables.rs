//! Variables from files of volumes: a container waits until they can be read.

use longshore_tests::pod;

use crate::bed::Bed;

#[tokio::test]
async fn a_container_waits_for_the_file_that_its_variables_come_from() {
    let bed = Bed::new();
    let spec = "{containers: [{name: app, image: app, env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: env, key: \
                A}}}]}], volumes: [{name: v, emptyDir: {}}]}";
    let pods = [pod("p", spec)];
    bed.source.set(pods.to_vec());
    bed.until("refused", |bed| bed.waiting_reason("p", "app") == "CreateContainerConfigError").await;
    let told = bed.events.events(Some("p"));
    assert!(told.iter().any(|event| event.message.starts_with("Error: couldn't parse env file: ")), "{told:?}");
    assert!(bed.runtime.container("p", "app").is_none());
    bed.files.in_volumes.lock().unwrap().insert("env".to_owned(), b"A='1'\n".to_vec());
    bed.until_ready(&pods).await;
}
