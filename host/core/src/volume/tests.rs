//! Volumes' contents, case by case: keys, modes, what is missing.

use k8s_openapi::ByteString;
use proptest::prelude::*;

use super::*;
use crate::testing::{node, pod_using};

fn objects() -> Objects {
    let mut objects = Objects::default();
    let text = |entries: &[(&str, &str)]| entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let bytes =
        |entries: &[(&str, &[u8])]| entries.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.to_vec()))).collect();
    let config = v1::ConfigMap {
        data: Some(text(&[("a", "A"), ("b", "B")])),
        binary_data: Some(bytes(&[("bin", &[0, 255])])),
        ..Default::default()
    };
    objects.config_maps.insert("config".to_owned(), Arc::new(config));
    let secret = v1::Secret {
        data: Some(bytes(&[("key", b"from-data")])),
        string_data: Some(text(&[("key", "from-text"), ("b", "from-secret")])),
        ..Default::default()
    };
    objects.secrets.insert("secret".to_owned(), Arc::new(secret));
    objects
}

fn resolved(volume: &str) -> Result<VolumeKind, String> {
    let pod = pod_using(&format!(
        "{{containers: [{{name: app, resources: {{limits: {{cpu: '1'}}}}}}], volumes: [{{name: v, {volume}}}]}}"
    ));
    let ips = ["10.0.0.5".parse().unwrap()];
    let specs = resolve(&pod, &node(), &objects(), &ips).map_err(|problem| {
        assert_eq!(problem.volume, "v");
        problem.message
    })?;
    assert_eq!((specs.len(), specs[0].name.as_str()), (1, "v"));
    Ok(specs[0].kind.clone())
}

/// Files as `path mode content`, whether on tmpfs, and the plugin.
fn payload(volume: &str) -> Result<(Vec<String>, bool, &'static str), String> {
    match resolved(volume)? {
        VolumeKind::Payload { files, memory, plugin } => {
            let show = |(path, file): (&String, &PayloadFile)| {
                format!("{path} {:o} {}", file.mode, String::from_utf8_lossy(&file.data).escape_default())
            };
            Ok((files.iter().map(show).collect(), memory, plugin))
        }
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn config_maps() {
    let all = payload("configMap: {name: config}").unwrap();
    assert_eq!(all.0, ["a 644 A", "b 644 B", "bin 644 \\u{0}\\u{fffd}"]);
    assert_eq!((all.1, all.2), (false, "kubernetes.io~configmap"));
    let some =
        "configMap: {name: config, defaultMode: 256, items: [{key: a, path: x/y}, {key: b, path: z, mode: 511}]}";
    assert_eq!(payload(some).unwrap().0, ["x/y 400 A", "z 777 B"]);
    assert_eq!(payload("configMap: {name: no}"), Err("configmap \"no\" not found".to_owned()));
    assert_eq!(payload("configMap: {name: no, optional: true}").unwrap().0, Vec::<String>::new());
    let item = "configMap: {name: config, items: [{key: no, path: x}]";
    assert_eq!(payload(&format!("{item}}}")), Err("configmap references non-existent config key: no".to_owned()));
    assert_eq!(payload(&format!("{item}, optional: true}}")).unwrap().0, Vec::<String>::new());
}

#[test]
fn secrets_stay_in_memory() {
    let all = payload("secret: {secretName: secret}").unwrap();
    assert_eq!(
        all,
        (vec!["b 644 from-secret".to_owned(), "key 644 from-text".to_owned()], true, "kubernetes.io~secret")
    );
    assert_eq!(payload("secret: {secretName: no}"), Err("secret \"no\" not found".to_owned()));
    let item = "secret: {secretName: secret, items: [{key: no, path: x}]}";
    assert_eq!(payload(item), Err("references non-existent secret key: no".to_owned()));
    assert!(payload("secret: {secretName: no, optional: true}").unwrap().1);
}

#[test]
fn the_downward_api() {
    let volume = "downwardAPI: {defaultMode: 292, items: [
        {path: name, fieldRef: {fieldPath: metadata.name}},
        {path: cpu, mode: 384, resourceFieldRef: {containerName: app, resource: limits.cpu, divisor: 1m}}]}";
    let expected = vec!["cpu 600 1000".to_owned(), "name 444 pod".to_owned()];
    assert_eq!(payload(volume), Ok((expected, false, "kubernetes.io~downward-api")));
    assert_eq!(
        payload("downwardAPI: {items: [{path: x, fieldRef: {fieldPath: spec.x}}]}"),
        Err("downwardAPI file \"x\": unsupported fieldPath: spec.x".to_owned())
    );
    assert!(payload("downwardAPI: {items: [{path: x, resourceFieldRef: {resource: limits.cpu}}]}").is_err());
    assert!(payload("downwardAPI: {items: [{path: x}]}").is_err());
}

#[test]
fn projected_sources_are_merged_in_order() {
    let volume = "projected: {defaultMode: 288, sources: [
        {configMap: {name: config}}, {secret: {name: secret, items: [{key: b, path: b}]}},
        {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]}";
    let expected = ["a 440 A", "b 440 from-secret", "bin 440 \\u{0}\\u{fffd}", "name 440 pod"];
    let (files, memory, plugin) = payload(volume).unwrap();
    assert_eq!((files, memory, plugin), (expected.map(str::to_owned).to_vec(), true, "kubernetes.io~projected"));
    assert!(!payload("projected: {sources: [{configMap: {name: config}}]}").unwrap().1);
    assert_eq!(
        payload("projected: {sources: [{configMap: {name: no}}, {secret: {name: no}}, {configMap: {name: config}}]}"),
        Err("[configmap \"no\" not found, secret \"no\" not found]".to_owned())
    );
    assert_eq!(
        payload("projected: {sources: [{serviceAccountToken: {path: token}}]}"),
        Err("there is no API server to issue it".to_owned())
    );
}

#[test]
fn paths_cannot_lead_out_or_through_files() {
    let one = |path: &str| payload(&format!("configMap: {{name: config, items: [{{key: a, path: '{path}'}}]}}"));
    for path in ["", "/etc/passwd", "..", "a/../b", "../x", "..data", "..x/y", ".", "./", "//a", "./..data", "a/./.."] {
        assert!(one(path).unwrap_err().starts_with("invalid path"), "{path}");
    }
    assert!(one(&"x".repeat(256)).is_err());
    for path in ["a", "a/b/c", "a..b", "a/..b", ".hidden"] {
        assert!(one(path).is_ok(), "{path}");
    }
    for (path, clean) in [("a//b", "a/b"), ("./a", "a"), ("a/.", "a"), ("a/", "a")] {
        assert!(one(path).unwrap().0[0].starts_with(&format!("{clean} ")), "{path}");
    }
    let through = "configMap: {name: config, items: [{key: a, path: x}, {key: b, path: x/y}]}";
    assert!(payload(through).unwrap_err().starts_with("conflicting paths"));
}

#[test]
fn empty_dirs() {
    assert_eq!(resolved("emptyDir: {}"), Ok(VolumeKind::EmptyDir { memory: false, size_limit: None }));
    let limited = VolumeKind::EmptyDir { memory: false, size_limit: Some(1 << 20) };
    assert_eq!(resolved("emptyDir: {sizeLimit: 1Mi}"), Ok(limited));
    let node_wide = VolumeKind::EmptyDir { memory: true, size_limit: Some(8 << 30) };
    assert_eq!(resolved("emptyDir: {medium: Memory}"), Ok(node_wide.clone()));
    assert_eq!(resolved("emptyDir: {medium: Memory, sizeLimit: 1Ti}"), Ok(node_wide));
    let small = VolumeKind::EmptyDir { memory: true, size_limit: Some(1 << 20) };
    assert_eq!(resolved("emptyDir: {medium: Memory, sizeLimit: 1Mi}"), Ok(small));
    assert!(resolved("emptyDir: {medium: HugePages}").is_err());
    assert!(resolved("emptyDir: {sizeLimit: big}").is_err());
}

#[test]
fn huge_pages_have_the_size_that_is_requested() {
    let kinds = |limits: &str| {
        let pod = pod_using(&format!(
            "{{containers: [{{name: app, resources: {{limits: {limits}}}}}], \
              volumes: [{{name: v, emptyDir: {{medium: HugePages}}}}, {{name: w, emptyDir: {{medium: HugePages-1Gi}}}}]}}"
        ));
        let of = |volume: usize| {
            let mut one = pod.clone();
            let spec = std::sync::Arc::make_mut(&mut one.object).spec.as_mut().unwrap();
            spec.volumes = spec.volumes.take().map(|all| vec![all[volume].clone()]);
            resolve(&one, &node(), &Objects::default(), &[])
                .map(|mut specs| specs.remove(0).kind)
                .map_err(|e| e.message)
        };
        (of(0), of(1))
    };
    let (any, large) = kinds("{hugepages-2Mi: 4Mi}");
    assert_eq!(any, Ok(VolumeKind::HugePages { page: 2 << 20 }));
    assert!(large.unwrap_err().contains("no resource request"));
    let (any, large) = kinds("{hugepages-2Mi: 4Mi, hugepages-1Gi: 1Gi}");
    assert!(any.unwrap_err().contains("multiple huge page sizes"));
    assert_eq!(large, Ok(VolumeKind::HugePages { page: 1 << 30 }));
}

#[test]
fn tmpfs_is_no_larger_than_the_pods_memory() {
    let pod = pod_using(
        "{containers: [{name: app, resources: {limits: {memory: 64Mi}}}],
          volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 1Gi}}]}",
    );
    let specs = resolve(&pod, &node(), &Objects::default(), &[]).unwrap();
    assert_eq!(specs[0].kind, VolumeKind::EmptyDir { memory: true, size_limit: Some(64 << 20) });
}

#[test]
fn whose_volumes_are() {
    let of = |security: &str| {
        let pod = pod_using(&format!("{{securityContext: {security}, containers: [{{name: a}}]}}"));
        FsGroup::of(&pod).map(|group| (group.gid, group.on_root_mismatch))
    };
    assert_eq!(of("{runAsUser: 5}"), None);
    assert_eq!(of("{fsGroup: 7}"), Some((7, false)));
    assert_eq!(of("{fsGroup: 7, fsGroupChangePolicy: Always}"), Some((7, false)));
    assert_eq!(of("{fsGroup: 7, fsGroupChangePolicy: OnRootMismatch}"), Some((7, true)));
}

#[test]
fn host_paths() {
    let path = |kind| Ok(VolumeKind::HostPath { path: "/data".into(), kind });
    assert_eq!(resolved("hostPath: {path: /data}"), path(HostPathKind::Unset));
    assert_eq!(resolved("hostPath: {path: /data, type: ''}"), path(HostPathKind::Unset));
    assert_eq!(resolved("hostPath: {path: /data, type: FileOrCreate}"), path(HostPathKind::FileOrCreate));
    assert_eq!(resolved("hostPath: {path: /data, type: Socket}"), path(HostPathKind::Socket));
    assert!(resolved("hostPath: {path: /data, type: Odd}").is_err());
    assert!(resolved("hostPath: {path: data}").is_err());
    assert!(resolved("hostPath: {path: /data/../etc}").is_err());
}

#[test]
fn nfs() {
    let volume = |options: &[&str]| {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Ok(VolumeKind::Nfs { server: "s".to_owned(), path: "/p".to_owned(), options })
    };
    assert_eq!(resolved("nfs: {server: s, path: /p}"), volume(&[]));
    assert_eq!(resolved("nfs: {server: s, path: /p, readOnly: true}"), volume(&["ro"]));
}

#[test]
fn other_kinds_are_named() {
    let message = |kind: &str| Err(format!("volume kind \"{kind}\" is not supported"));
    assert_eq!(
        resolved("persistentVolumeClaim: {claimName: x}"),
        Err("error processing PVC ns/x: there is no API server to ask for it".to_owned())
    );
    assert_eq!(resolved("csi: {driver: x}"), message("csi"));
    assert_eq!(resolved("iscsi: {targetPortal: x, iqn: y, lun: 0}"), message("iscsi"));
    let nothing = pod_using("{containers: [{name: a}], volumes: [{name: v}]}");
    let problem = resolve(&nothing, &node(), &Objects::default(), &[]).unwrap_err();
    assert_eq!(problem.to_string(), "volume \"v\": volume kind (none) is not supported");
}

#[test]
fn every_reference_is_found() {
    let pod = pod_using(
        "{imagePullSecrets: [{name: pull}, {name: ''}],
          volumes: [{name: c, configMap: {name: vc}}, {name: s, secret: {secretName: vs, optional: true}},
                    {name: p, projected: {sources: [{configMap: {name: pc}}, {secret: {name: ps}}]}},
                    {name: e, emptyDir: {}}],
          containers: [{name: app, envFrom: [{configMapRef: {name: ec}}, {secretRef: {name: es, optional: true}}],
                        env: [{name: X, valueFrom: {configMapKeyRef: {name: kc, key: k}}}]}],
          ephemeralContainers: [{name: debug, env: [{name: X, valueFrom: {secretKeyRef: {name: ds, key: k}}}]}],
          initContainers: [{name: init, env: [{name: X, valueFrom: {secretKeyRef: {name: ks, key: k}}}]}]}",
    );
    let found: Vec<String> = references(&pod)
        .iter()
        .map(|it| format!("{} {} {} {:?}", it.kind.as_str(), it.name, it.optional, it.user))
        .collect();
    assert_eq!(
        found,
        [
            "configmap vc false Volume(\"c\")",
            "secret vs true Volume(\"s\")",
            "configmap pc false Volume(\"p\")",
            "secret ps false Volume(\"p\")",
            "secret ks false Container(\"init\")",
            "configmap ec false Container(\"app\")",
            "secret es true Container(\"app\")",
            "configmap kc false Container(\"app\")",
            "secret ds false Container(\"debug\")",
        ]
    );
    assert_eq!(pull_secrets(&pod), ["pull"]);
}

proptest! {
    #[test]
    fn whatever_is_resolved_stays_inside(paths in proptest::collection::vec("[a./]{0,8}", 1..4)) {
        let items: Vec<String> = paths.iter().map(|path| format!("{{key: a, path: '{path}'}}")).collect();
        let volume = format!("configMap: {{name: config, items: [{}]}}", items.join(","));
        if let Ok(VolumeKind::Payload { files, .. }) = resolved(&volume) {
            for path in files.keys() {
                let parts: Vec<&str> = path.split('/').collect();
                prop_assert!(parts.iter().all(|part| !["", ".", ".."].contains(part)), "{}", path);
                prop_assert!(!parts[0].starts_with(".."), "{}", path);
                prop_assert!(!files.keys().any(|other| other.starts_with(&format!("{path}/"))), "{}", path);
            }
        }
    }
}

fn issued(pod: &crate::pod::Pod, issued: Result<Issued, String>) -> Result<Vec<(String, u32, Option<u32>)>, String> {
    let objects = Objects { issued: BTreeMap::from([(("v".to_owned(), 0), issued)]), ..Objects::default() };
    match resolve(pod, &node(), &objects, &[]).map_err(|problem| problem.message)?.remove(0).kind {
        VolumeKind::Payload { files, memory: true, .. } => {
            Ok(files.into_iter().map(|(path, file)| (path, file.mode, file.user)).collect())
        }
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn a_token_is_for_the_pods_user_and_group_alone() {
    let token = || {
        let expires = jiff::Timestamp::UNIX_EPOCH;
        Ok(Issued::Token(crate::ports::objects::Token { token: "t".to_owned(), expires }))
    };
    let volume = "volumes: [{name: v, projected: {defaultMode: 420, sources: [{serviceAccountToken: {path: token}}]}}]";
    for (fields, mode, user) in [
        ("containers: [{name: a}]", 0o644, None),
        ("securityContext: {runAsUser: 1000}, containers: [{name: a}, {name: b}]", 0o600, Some(1000)),
        ("securityContext: {fsGroup: 5}, containers: [{name: a}]", 0o600, None),
        ("containers: [{name: a, securityContext: {runAsUser: 1}}, {name: b}]", 0o644, None),
    ] {
        let pod = pod_using(&format!("{{{fields}, {volume}}}"));
        assert_eq!(issued(&pod, token()), Ok(vec![("token".to_owned(), mode, user)]), "{fields}");
    }
}

#[test]
fn bundles_and_certificates_go_where_their_sources_say() {
    let of = |source: &str| {
        pod_using(&format!("{{containers: [{{name: a}}], volumes: [{{name: v, projected: {{sources: [{source}]}}}}]}}"))
    };
    let bundle = of("{clusterTrustBundle: {name: ca, path: ca.pem}}");
    let missing = "while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io \"ca\" not found";
    assert_eq!(issued(&bundle, Ok(Issued::TrustBundles(None))), Err(missing.to_owned()));
    let signed = of("{clusterTrustBundle: {signerName: example.com/ca, labelSelector: {}, path: ca.pem}}");
    let missing = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
    assert_eq!(issued(&signed, Ok(Issued::TrustBundles(None))), Err(missing.to_owned()));
    let optional = of("{clusterTrustBundle: {name: ca, path: ca.pem, optional: true}}");
    assert_eq!(issued(&optional, Ok(Issued::TrustBundles(None))), Ok(vec![("ca.pem".to_owned(), 0o644, None)]));
    let certificate = crate::ports::objects::PodCertificate { key: "k".to_owned(), chain: "c".to_owned() };
    let pod = of("{podCertificate: {signerName: s, keyType: ED25519, keyPath: k.pem, certificateChainPath: c.pem}}");
    let files = issued(&pod, Ok(Issued::Certificate(certificate))).unwrap();
    assert_eq!(files.into_iter().map(|file| file.0).collect::<Vec<_>>(), ["c.pem", "k.pem"]);
}

fn persistent_volume(spec: &str) -> v1::PersistentVolume {
    let mut volume = v1::PersistentVolume { spec: Some(serde_saphyr::from_str(spec).unwrap()), ..Default::default() };
    volume.metadata.name = Some("pv".to_owned());
    volume
}

#[test]
fn problems_of_claims_are_told_as_the_kubelet_tells_them() {
    let pod = pod_using("{containers: [{name: a}], volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]}");
    let objects = |claim: Result<Option<&str>, &str>| {
        let bound = |volume: Option<&str>| BoundClaim {
            claim: v1::PersistentVolumeClaim::default(),
            volume: volume.map(persistent_volume),
        };
        let claim = claim.map(bound).map_err(str::to_owned);
        Objects { claims: BTreeMap::from([("c".to_owned(), claim)]), ..Objects::default() }
    };
    let told = |claim| resolve(&pod, &node(), &objects(claim), &[]).unwrap_err().told;
    let unprocessed = "Unable to attach or mount volumes: unmounted volumes=[v], unattached volumes=[], failed to process volumes=[v]";
    assert_eq!(told(Err("gone")), format!("{unprocessed}: error processing PVC ns/c: gone"));
    assert_eq!(told(Ok(None)), format!("{unprocessed}: error processing PVC ns/c: PVC is not bound"));
    let elsewhere = "{local: {path: /disk}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: x, operator: Exists}]}]}}}";
    assert_eq!(
        told(Ok(Some(elsewhere))),
        "MountVolume.NodeAffinity check failed for volume \"pv\" : no matching NodeSelectorTerms"
    );
    assert!(
        told(Ok(Some("{hostPath: {path: x}}"))).starts_with("MountVolume.SetUp failed for volume \"pv\" : hostPath")
    );
    assert_eq!(
        told(Ok(Some("{hostPath: {path: /x}, mountOptions: [noexec]}"))),
        "MountVolume.MountOptionSupport check failed for volume \"pv\" : mount options are not supported for this volume type"
    );
    assert_eq!(spec_name(&pod, &objects(Ok(Some("{local: {path: /disk}}"))), "v"), "pv");
    assert_eq!(
        (spec_name(&pod, &objects(Ok(None)), "v"), spec_name(&pod, &Objects::default(), "other")),
        ("v", "other")
    );
}

#[test]
fn a_claim_is_the_folder_of_the_volume_that_it_is_bound_to() {
    let pod = pod_using("{containers: [{name: a}], volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]}");
    let with = |volume: Option<&str>| {
        let volume = volume.map(persistent_volume);
        let claim = crate::ports::objects::BoundClaim { claim: Default::default(), volume };
        let objects = Objects { claims: BTreeMap::from([("c".to_owned(), Ok(claim))]), ..Objects::default() };
        resolve(&pod, &node(), &objects, &[]).map(|mut all| all.remove(0).kind).map_err(|problem| problem.message)
    };
    assert_eq!(with(None), Err("error processing PVC ns/c: PVC is not bound".to_owned()));
    // The claim of an ephemeral volume is the pod's own, or none of its business.
    let own = pod_using("{containers: [{name: a}], volumes: [{name: v, ephemeral: {}}]}");
    let name = claim_of(&own, &own.spec().volumes.as_ref().unwrap()[0]).unwrap();
    let owned_by = |uid: &str| {
        let mut claim = k8s_openapi::api::core::v1::PersistentVolumeClaim::default();
        claim.metadata.owner_references = serde_json::from_value(serde_json::json!([
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}
        ]))
        .unwrap();
        let claim = crate::ports::objects::BoundClaim { claim, volume: None };
        let objects = Objects { claims: BTreeMap::from([(name.clone(), Ok(claim))]), ..Objects::default() };
        resolve(&own, &node(), &objects, &[]).unwrap_err().message
    };
    assert!(owned_by(&own.id.uid).ends_with("PVC is not bound"));
    assert!(owned_by("other").ends_with("(pod is not owner)"));
    let grouped = |group: &str| {
        let annotations = BTreeMap::from([("pv.beta.kubernetes.io/gid".to_owned(), group.to_owned())]);
        let mut volume = k8s_openapi::api::core::v1::PersistentVolume::default();
        volume.metadata.annotations = Some(annotations);
        let claim = crate::ports::objects::BoundClaim { claim: Default::default(), volume: Some(volume) };
        groups(&Objects { claims: BTreeMap::from([("c".to_owned(), Ok(claim))]), ..Objects::default() })
    };
    assert_eq!((grouped("5000"), grouped("-1"), grouped("x")), (vec![5000], vec![], vec![]));
    let local = |options: &[&str]| {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        VolumeKind::Local { path: "/disk".into(), read_only: false, options }
    };
    assert_eq!(with(Some("{local: {path: /disk}}")), Ok(local(&[])));
    assert_eq!(with(Some("{local: {path: /disk}, mountOptions: [noexec, '', ro]}")), Ok(local(&["noexec", "ro"])));
    let options = vec!["ro".to_owned(), "nfsvers=4".to_owned()];
    let nfs = VolumeKind::Nfs { server: "s".to_owned(), path: "/p".to_owned(), options };
    assert_eq!(with(Some("{nfs: {server: s, path: /p, readOnly: true}, mountOptions: [nfsvers=4]}")), Ok(nfs));
    let taken = with(Some("{local: {path: /disk}, claimRef: {name: c, namespace: ns, uid: another}}")).unwrap_err();
    assert!(taken.ends_with("is not bound to the claim, but to another one or to none"), "{taken}");
    let elsewhere = "{local: {path: /disk}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: x, operator: Exists}]}]}}}";
    assert_eq!(with(Some(elsewhere)), Err("no matching NodeSelectorTerms".to_owned()));
    assert!(with(Some("{csi: {driver: d, volumeHandle: h}}")).unwrap_err().contains("needs a driver"));
}
