//! Images of the API server's pods whose registry asks for a password: by Secrets, and by the node's credential providers.

use std::{fs, os::unix::fs::PermissionsExt};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::bed::{
    node::Node,
    pods::{SLEEP, container, is_ready, pod, waiting, with},
    registry,
};

/// Who a provider's tokens are for.
const AUDIENCE: &str = "registry.test";

fn pulled(name: &str, image: &str, spec: Value) -> Value {
    pod(name, json!([with(container("app", SLEEP), json!({"image": image, "imagePullPolicy": "Always"}))]), spec)
}

/// The tests' image behind a door that opens for captain and s3cr3t: the door, and the image's name there.
fn behind_a_door(node: &Node, registry: &str) -> (String, String) {
    registry::push(node, registry, &node.name);
    let door = registry::guarded(registry, "captain", "s3cr3t");
    let image = format!("{door}/{}:1", node.name);
    (door, image)
}

/// Ends a test: its pods are gone, and then its image.
fn end(node: &Node, pods: &[&Value], image: &str) {
    node.cluster.delete(&node.all("pods"), None);
    for pod in pods {
        node.wait_api_gone(pod);
    }
    registry::remove(node, image);
}

#[test]
fn cluster_pulls_with_secrets_of_the_api_server() {
    let Some(address) = registry::address() else { return };
    let Some(node) = Node::start() else { return };
    let (door, image) = behind_a_door(&node, &address);
    let secret = |name: &str, password: &str| {
        let config = json!({"auths": {&door: {"username": "captain", "password": password}}}).to_string();
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": config}});
        node.cluster.create(&node.all("secrets"), &secret);
    };
    let using = |name: &str, secret: &str| {
        node.bind(&pulled(name, &image, json!({"imagePullSecrets": [{"name": secret}]})));
    };
    secret("wrong", "guess");
    secret("right", "s3cr3t");
    using("a", "right");
    using("b", "wrong");
    using("c", "late");
    node.bind(&pulled("d", &image, json!({})));
    let a = node.wait_api_ready("a");
    for name in ["b", "c", "d"] {
        node.wait_api(name, "is not let in", |pod| {
            ["ErrImagePull", "ImagePullBackOff"].contains(&waiting(pod, "app")) && !is_ready(pod)
        });
        node.wait_api_event(name, "Failed", "Failed to pull image");
    }
    // The Secret comes: the pod that waits finds it.
    secret("late", "s3cr3t");
    let c = node.wait_api_ready("c");
    let events = node.cluster.list(&node.all("events"));
    let told = fs::read_to_string(node.folder.join("log")).unwrap() + &Value::from(events).to_string();
    assert!(!told.contains("s3cr3t") && !told.contains("guess"), "passwords are told to nobody");
    end(&node, &[&a, &c], &image);
}

/// The claims of a JSON web token.
fn claims(token: &Value) -> Value {
    let part = token.as_str().unwrap_or_default().split('.').nth(1).unwrap_or_default();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap_or_else(|error| panic!("{token}: {error}"))
}

#[test]
fn cluster_pulls_with_credentials_of_a_provider_that_is_told_the_pods_account() {
    let Some(address) = registry::address() else { return };
    let Some(mut node) = Node::new(&[], false) else { return };
    let (door, image) = behind_a_door(&node, &address);
    let mut provider = json!({"name": "helper", "matchImages": [&door], "defaultCacheDuration": "1h",
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1"});
    // What a node may ask for that: an older API server lets none see accounts.
    let has_tokens = node.cluster.minor() >= 34;
    if has_tokens {
        provider["tokenAttributes"] = json!({"serviceAccountTokenAudience": AUDIENCE, "requireServiceAccount": true,
            "cacheType": "ServiceAccount"});
        let rule =
            json!({"apiGroups": [""], "resources": [AUDIENCE], "verbs": ["request-serviceaccounts-token-audience"]});
        let group = "rbac.authorization.k8s.io";
        let role = json!({"apiVersion": format!("{group}/v1"), "kind": "Role", "metadata": {"name": "audience"},
            "rules": [rule]});
        let binding = json!({"apiVersion": format!("{group}/v1"), "kind": "RoleBinding", "metadata": {"name": "audience"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "audience"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": format!("system:node:{}", node.name)}]});
        node.cluster.create(&node.all(&format!("{group}/roles")), &role);
        node.cluster.create(&node.all(&format!("{group}/rolebindings")), &binding);
    }
    let config = json!({"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
        "providers": [provider]});
    let answer = json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry", "auth": {&door: {"username": "captain", "password": "s3cr3t"}}});
    let (programs, asked) = (node.folder.join("providers"), node.folder.join("asked"));
    fs::create_dir(&programs).unwrap();
    let file = node.folder.join("providers.json");
    fs::write(&file, config.to_string()).unwrap();
    let helper = programs.join("helper");
    fs::write(&helper, format!("#!/bin/sh\n(cat; echo) >> {}\necho '{answer}'\n", asked.display())).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    node.flags.push(format!("--image-credential-provider-config={}", file.display()));
    node.flags.push(format!("--image-credential-provider-bin-dir={}", programs.display()));
    node.begin();
    node.wait_node_ready();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "other"}});
    node.cluster.create(&node.all("serviceaccounts"), &account);
    let mut pods = Vec::new();
    for (name, account) in [("a", "default"), ("b", "default"), ("c", "other")] {
        node.bind(&pulled(name, &image, json!({"serviceAccountName": account})));
        pods.push(node.wait_api_ready(name));
    }
    let asked = fs::read_to_string(asked).unwrap();
    let questions: Vec<Value> = asked.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // What it says is good for the account that it was asked for, or for all.
    let accounts: &[&str] = if has_tokens { &["default", "other"] } else { &[""] };
    assert_eq!(questions.len(), accounts.len(), "{asked}");
    for (question, account) in questions.iter().zip(accounts) {
        assert_eq!(question["image"], format!("{door}/{}", node.name).as_str());
        if has_tokens {
            let claims = claims(&question["serviceAccountToken"]);
            assert_eq!(claims["sub"], format!("system:serviceaccount:{}:{account}", node.name).as_str());
            assert_eq!(claims["aud"], json!([AUDIENCE]));
        }
    }
    assert!(!fs::read_to_string(node.folder.join("log")).unwrap().contains("s3cr3t"), "passwords are told to nobody");
    end(&node, &pods.iter().collect::<Vec<_>>(), &image);
}
