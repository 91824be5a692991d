//! Images that are there, and what of them can be removed; the size of writable layers.

use longshore_core::ports::runtime::{ContainerRuntime, RuntimeError, StoredImage};

use crate::fake::{Fake, Reply, ok};
use crate::world::{IMAGE, World};

async fn find(world: &World, name: &str) -> Option<StoredImage> {
    let all = world.docker.stored_images().await.unwrap();
    all.into_iter().find(|image| image.names.iter().any(|other| other == name))
}

#[tokio::test]
async fn what_no_container_uses_can_be_removed_with_all_its_names() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let app = world.run(&sandbox, "app", &["sh", "-c", "dd if=/dev/zero of=/big bs=1024 count=2048; sleep 1000"]).await;
    let used = find(&world, IMAGE).await.unwrap();
    assert!(used.in_use && !used.pinned && used.size > 1 << 20, "{used:?}");
    let pause = world.docker.stored_images().await.unwrap().into_iter().find(|image| image.pinned).unwrap();
    assert!(pause.in_use && pause.names.iter().any(|name| name.contains("pause")), "{pause:?}");
    assert!(matches!(world.docker.remove_image(&used).await, Err(RuntimeError::Failed { .. })));
    assert_eq!(find(&world, IMAGE).await.unwrap().names, used.names, "it has lost no name");

    // Another image, with two names.
    let (one, two) = (format!("{}/one:1", world.root), format!("{}/two:2", world.root));
    let options = bollard::query_parameters::CommitContainerOptionsBuilder::default()
        .container(&app)
        .repo(one.split_once(':').unwrap().0)
        .tag("1")
        .build();
    world.raw.commit_container(options, bollard::models::ContainerConfig::default()).await.unwrap();
    let repo = two.split_once(':').unwrap().0;
    let options = bollard::query_parameters::TagImageOptionsBuilder::default().repo(repo).tag("2").build();
    world.raw.tag_image(&one, Some(options)).await.unwrap();
    let unused = find(&world, &one).await.unwrap();
    assert!(!unused.in_use && unused.names.contains(&two), "{unused:?}");
    world.docker.remove_image(&unused).await.unwrap();
    assert!(!world.docker.stored_images().await.unwrap().iter().any(|image| image.id == unused.id));
    world.docker.remove_image(&unused).await.unwrap();
}

#[tokio::test]
async fn writable_layers_are_measured() {
    let Some(world) = World::new().await else { return };
    let sandbox = world.running_sandbox().await;
    let app = world.run(&sandbox, "app", &["sh", "-c", "dd if=/dev/zero of=/big bs=1024 count=4096"]).await;
    world.end(&app).await;
    let sizes = world.docker.writable_layers(None).await.unwrap();
    assert!((4 << 20..6 << 20).contains(&sizes[&app]), "{sizes:?}");
    assert!(sizes[&sandbox] < 1 << 20, "{sizes:?}");
    assert_eq!(sizes.len(), 2, "only ours");
    let uid = world.container(&sandbox, "app", &[]).pod.uid;
    assert_eq!(world.docker.writable_layers(Some(&uid)).await.unwrap(), sizes, "all of one pod");
    assert!(world.docker.writable_layers(Some("other")).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_container_by_name_uses_its_image_too() {
    let fake = Fake::new(|request, _| {
        if request.contains("/images/json") {
            ok(r#"[{"Id":"sha256:aa","RepoTags":["a:1"],"RepoDigests":["a@sha256:bb"],"Size":7},
                {"Id":"sha256:cc","RepoTags":null,"RepoDigests":["<none>@<none>"],"Size":-1},{"RepoTags":["x:1"]}]"#)
        } else if request.contains("/containers/json") {
            // No agent made it: the label is its image's.
            ok(r#"[{"Id":"1","Image":"a:1","ImageID":"sha256:ee","Labels":{"dev.longshore.images":"sha256:cc"}}]"#)
        } else {
            Reply::Json(404, r#"{"message":"No such image"}"#.to_owned())
        }
    });
    let all = fake.docker.stored_images().await.unwrap();
    let told: Vec<_> =
        all.iter().map(|image| (image.id.as_str(), image.in_use, image.names.len(), image.size)).collect();
    assert_eq!(told, [("sha256:aa", true, 2, 7), ("sha256:cc", false, 0, 0)]);
    assert!(fake.docker.remove_image(&all[0]).await.is_err());
    fake.docker.remove_image(&all[1]).await.unwrap();
    assert_eq!(fake.count("DELETE"), 1);
}

/// Several agents may be on one Docker.
#[tokio::test]
async fn what_another_agents_container_mounts_is_in_use() {
    let fake = Fake::new(|request, _| {
        if request.contains("/images/json") {
            ok(r#"[{"Id":"sha256:aa","RepoTags":["a:1"],"Size":7}]"#)
        } else if request.contains("/containers/json") {
            ok(r#"[{"Id":"1","Image":"b:1","ImageID":"sha256:bb","Labels":{"dev.longshore.root":"other",
                "dev.longshore.images":"sha256:aa","dev.longshore.attempt":"0","io.kubernetes.docker.type":"container",
                "io.kubernetes.pod.name":"p","io.kubernetes.pod.namespace":"n","io.kubernetes.pod.uid":"u",
                "io.kubernetes.container.name":"c"}}]"#)
        } else {
            Reply::Json(404, r#"{"message":"No such image"}"#.to_owned())
        }
    });
    let all = fake.docker.stored_images().await.unwrap();
    assert!(all.len() == 1 && all[0].in_use, "{all:?}");
}
