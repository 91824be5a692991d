//! Users, groups, capabilities and confinement, case by case.

use super::*;
use crate::testing::{node, pod_from};

/// A pod with one container `app`, with that security context, and that one of the pod.
fn pod(of_pod: &str, of_container: &str) -> Pod {
    pod_from(&format!(
        "{{securityContext: {{{of_pod}}}, containers: [{{name: app, securityContext: {{{of_container}}}}}]}}"
    ))
}

fn app(pod: &Pod) -> &v1::Container {
    &pod.spec().containers[0]
}

#[test]
fn users() {
    let cases = [
        ("", "", "", None),
        ("", "", "1000:1000", None),
        ("runAsUser: 5", "", "", Some("5")),
        ("runAsUser: 5", "runAsUser: 6", "nobody", Some("6")),
        ("runAsUser: 5, runAsGroup: 7", "runAsUser: 6", "", Some("6:7")),
        ("runAsGroup: 7", "", "", Some("0:7")),
        ("runAsGroup: 7", "", "1000:1000", Some("1000:7")),
        ("runAsGroup: 7", "runAsGroup: 8", "nobody", Some("nobody:8")),
        ("", "runAsUser: 0", "1000", Some("0")),
    ];
    for (of_pod, of_container, image, expected) in cases {
        let pod = pod(of_pod, of_container);
        assert_eq!(user(&pod, app(&pod), image).as_deref(), expected, "{of_pod} / {of_container} / {image}");
    }
    assert_eq!(sandbox_user(&pod("runAsUser: 5, runAsGroup: 7", "runAsUser: 6")).as_deref(), Some("5:7"));
    assert_eq!(sandbox_user(&pod("", "runAsUser: 6")), None);
    assert_eq!(groups(&pod("fsGroup: 3, supplementalGroups: [1, 3, 2]", "")), [3, 1, 2]);
}

#[test]
fn non_root_is_verified() {
    let cases = [
        ("", "", "", Ok(())),
        ("runAsNonRoot: true", "", "1000", Ok(())),
        ("runAsNonRoot: true", "", "1000:0", Ok(())),
        ("runAsNonRoot: true", "runAsNonRoot: false", "", Ok(())),
        ("runAsNonRoot: true", "runAsUser: 5", "root", Ok(())),
        ("runAsNonRoot: true", "", "", Err("container has runAsNonRoot and image will run as root")),
        ("", "runAsNonRoot: true", "0:1000", Err("container has runAsNonRoot and image will run as root")),
        (
            "",
            "runAsNonRoot: true",
            "nobody:nobody",
            Err("container has runAsNonRoot and image has non-numeric user (nobody), cannot verify user is non-root"),
        ),
        ("runAsNonRoot: true", "runAsUser: 0", "1000", Err("container's runAsUser breaks non-root policy")),
    ];
    for (of_pod, of_container, image, expected) in cases {
        let pod = pod(of_pod, of_container);
        let verified = verify_non_root(&pod, app(&pod), image).map_err(|error| error.to_string());
        let place = "(pod: \"pod_ns(uid)\", container: app)";
        let expected = expected.map_err(|message| format!("{message} {place}"));
        assert_eq!(verified, expected, "{of_pod} / {of_container} / {image}");
    }
}

#[test]
fn capability_names() {
    let pod = pod("", "capabilities: {add: [CAP_NET_ADMIN, sys_time, NET_ADMIN], drop: [ALL, cap_chown]}");
    let expected = (vec!["NET_ADMIN".to_owned(), "SYS_TIME".to_owned()], vec!["ALL".to_owned(), "CHOWN".to_owned()]);
    assert_eq!(capabilities(app(&pod)), expected);
    assert_eq!(capabilities(&v1::Container::default()), (Vec::new(), Vec::new()));
}

#[test]
fn each_security_option() {
    let unconfined = "seccomp=unconfined";
    let cases: &[(&str, &str, &[&str])] = &[
        ("", "", &[unconfined]),
        ("", "allowPrivilegeEscalation: false", &["no-new-privileges", unconfined]),
        ("", "allowPrivilegeEscalation: true", &[unconfined]),
        ("seccompProfile: {type: RuntimeDefault}", "", &[]),
        ("seccompProfile: {type: RuntimeDefault}", "seccompProfile: {type: Unconfined}", &[unconfined]),
        ("", "seccompProfile: {type: Localhost, localhostProfile: p.json}", &["seccomp={\"b\":1,\"a\":[]}"]),
        ("appArmorProfile: {type: Unconfined}", "", &[unconfined, "apparmor=unconfined"]),
        ("appArmorProfile: {type: Unconfined}", "appArmorProfile: {type: RuntimeDefault}", &[unconfined]),
        ("", "appArmorProfile: {type: Localhost, localhostProfile: mine}", &[unconfined, "apparmor=mine"]),
        ("seLinuxOptions: {level: 's0:c1', type: t}", "", &[unconfined, "label=type:t", "label=level:s0:c1"]),
        (
            "seLinuxOptions: {type: t}",
            "seLinuxOptions: {user: u, role: r}",
            &[unconfined, "label=user:u", "label=role:r"],
        ),
    ];
    let profiles = BTreeMap::from([("p.json".to_owned(), "{\n  \"b\": 1,\n  \"a\": [ ]\n}".to_owned())]);
    for (of_pod, of_container, expected) in cases {
        let pod = pod(of_pod, of_container);
        assert_eq!(options(&pod, app(&pod), &node(), &profiles).unwrap(), *expected, "{of_pod} / {of_container}");
    }
}

#[test]
fn options_that_depend_on_the_node() {
    let mut node = node();
    node.seccomp_default = true;
    node.apparmor = false;
    let pod = pod("appArmorProfile: {type: Unconfined}", "");
    assert_eq!(options(&pod, app(&pod), &node, &BTreeMap::new()).unwrap(), Vec::<String>::new());
}

#[test]
fn apparmor_annotations_go_before_the_pods_field() {
    let annotated = |value: &str, of_container: &str| {
        let mut pod = pod("appArmorProfile: {type: Localhost, localhostProfile: pods}", of_container);
        let object = std::sync::Arc::make_mut(&mut pod.object);
        let key = "container.apparmor.security.beta.kubernetes.io/app".to_owned();
        object.metadata.annotations = Some(BTreeMap::from([(key, value.to_owned())]));
        options(&pod, app(&pod), &node(), &BTreeMap::new()).map(|options| options.get(1).cloned())
    };
    assert_eq!(annotated("runtime/default", ""), Ok(None));
    assert_eq!(annotated("unconfined", ""), Ok(Some("apparmor=unconfined".to_owned())));
    assert_eq!(annotated("localhost/mine", ""), Ok(Some("apparmor=mine".to_owned())));
    let own = "appArmorProfile: {type: Localhost, localhostProfile: own}";
    assert_eq!(annotated("localhost/mine", own), Ok(Some("apparmor=own".to_owned())));
    assert!(annotated("else", "").unwrap_err().to_string().contains("unknown profile \"else\""));
}

#[test]
fn profiles_that_cannot_be_used_are_said() {
    let spec = "seccompProfile: {type: Localhost, localhostProfile: p.json}";
    let pod_of = pod("", spec);
    let failing = |profiles: &[(&str, &str)]| {
        let profiles = profiles.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let error = options(&pod_of, app(&pod_of), &node(), &profiles).unwrap_err();
        assert_eq!(error.reason, "CreateContainerError");
        error.to_string()
    };
    let place = "securityContext.seccompProfile of container \"app\"";
    assert_eq!(
        failing(&[]),
        format!(
            "{place}: cannot load seccomp profile \"p.json\": there must be a readable file of that name below \
             /var/lib/longshore/seccomp"
        )
    );
    assert!(failing(&[("p.json", "{")]).contains("is not JSON"));
    let other = pod("", "seccompProfile: {type: Odd}");
    let error = options(&other, app(&other), &node(), &BTreeMap::new()).unwrap_err();
    assert_eq!(error.reason, "CreateContainerConfigError");
    let other = pod("", "appArmorProfile: {type: Localhost}");
    assert!(options(&other, app(&other), &node(), &BTreeMap::new()).is_err());
}

#[test]
fn profiles_to_read() {
    let pod = pod_from(
        "{securityContext: {seccompProfile: {type: Localhost, localhostProfile: pods.json}},
          containers: [{name: a}, {name: b, securityContext: {seccompProfile: {type: RuntimeDefault}}},
                       {name: c, securityContext: {seccompProfile: {type: Localhost, localhostProfile: c.json}}}],
          initContainers: [{name: i, securityContext:
                             {seccompProfile: {type: Localhost, localhostProfile: ../../etc/shadow}}}],
          ephemeralContainers: [{name: debug, securityContext:
                                  {seccompProfile: {type: Localhost, localhostProfile: debug.json}}}]}",
    );
    assert_eq!(localhost_profiles(&pod), ["pods.json", "c.json", "debug.json"]);
}

#[test]
fn the_sandbox_has_the_runtimes_own_profile() {
    let pod = pod("seccompProfile: {type: Unconfined}, seLinuxOptions: {type: t}", "");
    assert_eq!(sandbox_options(&pod), ["no-new-privileges", "label=type:t"]);
}

#[test]
fn plain_flags() {
    let all = pod("", "privileged: true, procMount: Unmasked, readOnlyRootFilesystem: true");
    let all = app(&all);
    assert!(is_privileged(all) && is_proc_unmasked(all) && is_rootfs_read_only(all));
    let none = v1::Container::default();
    assert!(!is_privileged(&none) && !is_proc_unmasked(&none) && !is_rootfs_read_only(&none));
}
