//! Containers of others.

use std::time::Duration;

use longshore_core::labels;
use longshore_core::ports::runtime::{ContainerRuntime, RuntimeError};

use crate::world::World;

#[tokio::test]
async fn others_are_seen_and_left_alone() {
    let Some(world) = World::new().await else { return };
    let Some(other) = World::new().await else { return };
    // dockershim's: its labels without ours. It is made through our adapter, with the labels changed.
    let mut shim = world.sandbox(7);
    shim.labels.remove(labels::ROOT);
    shim.labels.insert("longshore-test".to_owned(), world.root.clone());
    let shim = world.docker.create_sandbox(&shim).await.unwrap();
    world.docker.start(&shim).await.unwrap();
    let theirs = other.running_sandbox().await;

    let fresh =
        longshore_docker::Docker::connect(&crate::world::endpoint(), world.root.clone(), Default::default()).unwrap();
    let found = fresh.foreign().await.unwrap();
    let of = |id: &str| found.iter().find(|found| found.id == id).cloned().unwrap();
    let (shims, longshores) = (of(&shim), of(&theirs));
    assert_eq!((shims.longshore_root.clone(), shims.running, shims.is_sandbox), (None, true, true));
    assert_eq!(shims.pod, world.pod);
    assert_eq!(shims.name, labels::sandbox_name(&world.pod, 7));
    assert_eq!(longshores.longshore_root, Some(other.root.clone()));

    for id in [&shim, &theirs] {
        assert_eq!(fresh.inspect(id).await.unwrap(), None);
        assert!(matches!(fresh.start(id).await, Err(RuntimeError::NotFound { .. })));
        fresh.stop(id, Duration::ZERO).await.unwrap();
        fresh.remove(id).await.unwrap();
        let state = world.raw.inspect_container(id, None).await.unwrap().state.unwrap();
        assert_eq!(state.running, Some(true));
    }
    assert_eq!(fresh.list().await.unwrap(), []);

    let failed = fresh.remove_foreign(&[shims, longshores], Some(Duration::from_secs(5))).await;
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].0.id, theirs);
    assert!(world.raw.inspect_container(&shim, None).await.is_err());
    assert!(other.raw.inspect_container(&theirs, None).await.is_ok());
}
