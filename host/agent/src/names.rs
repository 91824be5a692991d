//! Names that people type: the near one when a name is wrong, and which pod is meant.

use longshore_core::view::PodView;

/// The candidate that a wrong name most likely meant.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let scored = candidates.into_iter().map(|candidate| {
        let other = candidate.to_lowercase();
        let begins = !lower.is_empty() && other.starts_with(&lower);
        let likeness = strsim::normalized_damerau_levenshtein(&lower, &other);
        (if begins { likeness.max(0.9) } else { likeness }, candidate)
    });
    let best = scored.max_by(|(a, first), (b, second)| a.total_cmp(b).then_with(|| second.cmp(first)));
    best.filter(|(likeness, _)| *likeness >= 0.6).map(|(_, candidate)| candidate)
}

/// What kubectl's users name beside pods: here such a word is read as a namespace or a pod.
const OTHER_KINDS: &str = "cj cm configmap configmaps cronjob cronjobs daemonset daemonsets deploy deployment deployments \
                           ds job jobs no node nodes replicaset replicasets rs secret secrets service services \
                           statefulset statefulsets sts svc";

/// A pod as someone names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodName {
    /// The namespace, where it was said.
    pub(crate) namespace: Option<String>,
    /// The name.
    pub(crate) name: String,
}

impl PodName {
    /// Reads `NAME`, `NS/NAME`, `pod/NAME`, `pods/NAME` or `po/NAME`; `namespace` is what `-n` says. `pod/x` is the
    /// pod `x`, not one of a namespace `pod`, unless `-n` is absent and such a pod exists: kubectl's reading wins.
    pub(crate) fn parse(text: &str, namespace: Option<&str>) -> Result<PodName, String> {
        let mut parts: Vec<&str> = text.split('/').collect();
        if parts.len() > 1 && matches!(parts[0], "pod" | "pods" | "po") {
            parts.remove(0);
        }
        let (own, name) = match parts.as_slice() {
            [name] => (None, *name),
            [own, name] => (Some(*own), *name),
            _ => return Err(format!("{text:?} is not a pod's name; expected NAME or NAMESPACE/NAME")),
        };
        if name.is_empty() || own == Some("") {
            return Err(format!("{text:?} is not a pod's name; expected NAME or NAMESPACE/NAME"));
        }
        if let (Some(own), Some(flag)) = (own, namespace)
            && own != flag
        {
            return Err(format!("{text:?} names the namespace {own:?}, but -n says {flag:?}"));
        }
        Ok(PodName { namespace: own.or(namespace).map(str::to_owned), name: name.to_owned() })
    }

    /// The pod that is meant. Without a namespace `default` is looked at first, then all of them when one pod alone
    /// fits; a static pod may be named without the node's name at its end. Several pods of one name (an old one that
    /// ends, a new one that starts) are all returned, the newest first.
    pub(crate) fn find<'v>(&self, views: &'v [PodView]) -> Result<Vec<&'v PodView>, String> {
        let namespace = self.namespace.as_deref();
        let inside = |view: &&PodView| namespace.is_none_or(|namespace| view.id.namespace == namespace);
        let exact: Vec<&PodView> = views.iter().filter(inside).filter(|view| view.id.name == self.name).collect();
        let fitting = match exact.is_empty() {
            false => exact,
            true => views.iter().filter(inside).filter(|view| static_name(view) == Some(&self.name)).collect(),
        };
        let in_default: Vec<&PodView> = fitting.iter().copied().filter(|view| view.id.namespace == "default").collect();
        let mut fitting = if namespace.is_none() && !in_default.is_empty() { in_default } else { fitting };
        if fitting.is_empty() {
            return Err(self.not_found(views));
        }
        let same =
            |view: &&PodView| (&view.id.namespace, &view.id.name) == (&fitting[0].id.namespace, &fitting[0].id.name);
        if !fitting.iter().all(same) {
            let names: Vec<String> = fitting.iter().map(|view| view.id.to_string()).collect();
            return Err(format!("pod {:?} is not unique: {}; say which with -n", self.name, names.join(", ")));
        }
        fitting.sort_by_key(|view| std::cmp::Reverse(created(view)));
        Ok(fitting)
    }

    fn not_found(&self, views: &[PodView]) -> String {
        let here = self.namespace.as_deref().map_or(String::new(), |namespace| format!(" in namespace {namespace:?}"));
        let elsewhere = views.iter().find(|view| view.id.name == self.name);
        let elsewhere = elsewhere.or_else(|| views.iter().find(|view| static_name(view) == Some(&self.name)));
        let elsewhere = elsewhere.map(|view| view.id.to_string());
        let names = || {
            let inside = |view: &&PodView| self.namespace.as_ref().is_none_or(|own| view.id.namespace == *own);
            let known = views.iter().filter(inside);
            let known = known.flat_map(|view| [Some(view.id.name.as_str()), static_name(view)]).flatten();
            nearest(&self.name, known).map(str::to_owned)
        };
        let words = [self.namespace.as_deref(), Some(self.name.as_str())];
        let hint = match elsewhere.or_else(names) {
            Some(near) => format!("; did you mean {near:?}?"),
            None if words.iter().flatten().any(|word| OTHER_KINDS.split(' ').any(|kind| kind == *word)) => {
                "; nothing but pods can be named here".to_owned()
            }
            None => String::new(),
        };
        format!("pod {:?} not found{here}{hint}", self.name)
    }
}

/// A static pod's name in its manifest: without the node's name at its end.
fn static_name(view: &PodView) -> Option<&str> {
    let node = view.object.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let node = node.filter(|node| !node.is_empty())?;
    view.id.name.strip_suffix(node).and_then(|rest| rest.strip_suffix('-'))
}

fn created(view: &PodView) -> Option<jiff::Timestamp> {
    let status = view.object.status.as_ref();
    let start = status.and_then(|status| status.start_time.as_ref());
    start.or(view.object.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::print::samples::view;

    #[test]
    fn near_names() {
        let known = ["web-server", "database", "cache"];
        assert_eq!(nearest("web-sever", known), Some("web-server"));
        assert_eq!(nearest("Data", known), Some("database"));
        assert_eq!(nearest("zzz", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("maxPod", ["maxPods", "podCIDR"]), Some("maxPods"));
    }

    #[test]
    fn the_forms_of_a_name() {
        let parse = |text, namespace| PodName::parse(text, namespace).map(|name| (name.namespace, name.name));
        assert_eq!(parse("web", None), Ok((None, "web".into())));
        assert_eq!(parse("shop/web", None), Ok((Some("shop".into()), "web".into())));
        assert_eq!(parse("pod/web", Some("shop")), Ok((Some("shop".into()), "web".into())));
        assert_eq!(parse("pod/shop/web", None), Ok((Some("shop".into()), "web".into())));
        assert!(parse("shop/web", Some("default")).is_err());
        assert!(parse("a/b/c", None).is_err());
        assert!(parse("/", None).is_err());
    }

    #[test]
    fn which_pod_is_meant() {
        let views = [view("default", "web-node1"), view("shop", "web-node1"), view("shop", "cart-node1")];
        let find = |text: &str, namespace| {
            let name = PodName::parse(text, namespace).unwrap();
            name.find(&views).map(|found| found[0].id.to_string())
        };
        assert_eq!(find("web-node1", None).unwrap(), "default/web-node1");
        assert_eq!(find("web", None).unwrap(), "default/web-node1");
        assert_eq!(find("web", Some("shop")).unwrap(), "shop/web-node1");
        assert_eq!(find("cart", None).unwrap(), "shop/cart-node1");
        assert!(find("wbe", Some("default")).unwrap_err().ends_with("did you mean \"web\"?"));
        assert_eq!(
            find("cart-node", Some("shop")).unwrap_err(),
            "pod \"cart-node\" not found in namespace \"shop\"; did you mean \"cart-node1\"?"
        );
        assert_eq!(
            find("cart-node1", Some("default")).unwrap_err(),
            "pod \"cart-node1\" not found in namespace \"default\"; did you mean \"shop/cart-node1\"?"
        );
        for other in ["deploy/zzz", "deployment"] {
            assert!(find(other, None).unwrap_err().ends_with("nothing but pods can be named here"), "{other}");
        }
        assert!(find("cart", Some("default")).unwrap_err().ends_with("did you mean \"shop/cart-node1\"?"));
    }
}
