//! `longshore get pods`: the pods of this node in kubectl's columns, or as YAML, JSON or names.

use anyhow::{Context, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1;
use longshore_core::ports::sources::SourceProblem;
use longshore_core::view::PodView;

use super::out;
use crate::cli::{GetArgs, Output};
use crate::client::Client;
use crate::names::{PodName, nearest};
use crate::print::escape;
use crate::print::pod_row::{pending_resize, pod_row};
use crate::print::table::Table;
use crate::socket::api::{ProblemList, WatchEvent};

/// What is asked for, checked.
struct Query {
    names: Vec<PodName>,
    /// `None` for all.
    namespace: Option<String>,
    output: Option<Output>,
    headers: bool,
}

impl Query {
    fn new(arguments: &GetArgs) -> anyhow::Result<Query> {
        let flag = arguments.namespace.as_deref();
        let mut names = Vec::new();
        match arguments.resource.as_str() {
            "pods" | "pod" | "po" => {}
            other if other.contains('/') => names.push(PodName::parse(other, flag).map_err(anyhow::Error::msg)?),
            other => {
                let known = ["pods", "pod", "po"];
                let hint = nearest(other, known).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                bail!("{other:?} is not a kind that this node lists; there are: pods{hint}");
            }
        }
        for name in &arguments.names {
            names.push(PodName::parse(name, flag).map_err(anyhow::Error::msg)?);
        }
        if arguments.all_namespaces && !names.is_empty() {
            bail!("a pod cannot be named together with --all-namespaces");
        }
        let namespace = match arguments.all_namespaces {
            true => None,
            false => Some(arguments.namespace.clone().unwrap_or_else(|| "default".to_owned())),
        };
        let headers = !arguments.no_headers;
        Ok(Query { names, namespace, output: arguments.output, headers })
    }

    /// The pods that are asked for.
    fn select<'v>(&self, views: &'v [PodView]) -> Result<Vec<&'v PodView>, String> {
        if self.names.is_empty() {
            let inside = |view: &&PodView| self.namespace.as_ref().is_none_or(|own| view.id.namespace == *own);
            return Ok(views.iter().filter(inside).collect());
        }
        let mut selected = Vec::new();
        for name in &self.names {
            selected.extend(name.find(views)?);
        }
        Ok(selected)
    }

    fn row(&self, pod: &v1::Pod, now: Timestamp) -> Vec<String> {
        let row = pod_row(pod, now);
        let mut cells = Vec::new();
        if self.namespace.is_none() {
            cells.push(pod.metadata.namespace.clone().unwrap_or_default());
        }
        cells.extend([row.name, row.ready, row.status, row.restarts, row.age]);
        if self.output == Some(Output::Wide) {
            let none = || "<none>".to_owned();
            let status = pod.status.as_ref();
            let filled = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(none);
            cells.push(filled(status.and_then(|status| status.pod_ip.clone())));
            cells.push(filled(pod.spec.as_ref().and_then(|spec| spec.node_name.clone())));
            cells.push(filled(status.and_then(|status| status.nominated_node_name.clone())));
            cells.push(readiness_gates(pod).unwrap_or_else(none));
        }
        cells
    }

    fn header(&self) -> Vec<String> {
        let namespace = self.namespace.is_none().then_some("NAMESPACE");
        let wide: &[&str] = match self.output {
            Some(Output::Wide) => &["IP", "NODE", "NOMINATED NODE", "READINESS GATES"],
            _ => &[],
        };
        let usual = ["NAME", "READY", "STATUS", "RESTARTS", "AGE"];
        namespace.into_iter().chain(usual).chain(wide.iter().copied()).map(str::to_owned).collect()
    }
}

/// Lists pods, and goes on with changes when asked to.
pub(crate) async fn get(client: &Client, arguments: &GetArgs) -> anyhow::Result<()> {
    let query = Query::new(arguments)?;
    let views: Vec<PodView> = super::views(client).await?;
    let problems: ProblemList = client.get("/v1/problems").await?;
    let selected = query.select(&views);
    let unknown = match &selected {
        Ok(selected) if !selected.is_empty() => None,
        _ => super::unknown(client).await,
    };
    let mut table = Table::default();
    match &selected {
        Ok(selected) if unknown.is_none() => {
            print_list(&query, selected, &mut table)?;
            selected.iter().filter_map(|view| infeasible(view)).for_each(|line| out::complain(&line));
        }
        _ => {}
    }
    let is_told = |problem: &&SourceProblem| unknown.as_ref().is_some_and(|told| told.ends_with(&problem.message));
    for problem in problems.items.iter().filter(|problem| !is_told(problem)) {
        let kind = if problem.warning { "warning" } else { "error" };
        out::complain(&format!("{kind}: {}: {}", problem.place, problem.message));
    }
    if let Err(message) = selected {
        return Err(super::not_found(message, &views, unknown));
    }
    match unknown {
        Some(unknown) if arguments.watch => out::complain(&unknown),
        Some(unknown) => bail!(unknown),
        None => {}
    }
    if arguments.watch {
        watch(client, &query, &views, &mut table).await?;
    }
    Ok(())
}

/// What is wrong with a pod that the table shows to be well: it is wanted at a size that it can never be given.
fn infeasible(view: &PodView) -> Option<String> {
    let (_, message) = pending_resize(&view.object).filter(|(reason, _)| *reason == "Infeasible")?;
    Some(format!("warning: pod {}: its resize is not possible: {message}", view.id))
}

fn print_list(query: &Query, selected: &[&PodView], table: &mut Table) -> anyhow::Result<()> {
    let now = Timestamp::now();
    match query.output {
        None | Some(Output::Wide) if selected.is_empty() => out::complain(&match &query.namespace {
            Some(namespace) => format!("No resources found in {namespace} namespace."),
            None => "No resources found".to_owned(),
        }),
        None | Some(Output::Wide) => {
            let header = query.headers.then(|| query.header());
            let rows = selected.iter().map(|view| query.row(&view.object, now));
            let rows: Vec<Vec<String>> = header.into_iter().chain(rows).collect();
            out::print(&table.lines(&rows))?;
        }
        Some(Output::Name) => {
            for view in selected {
                out::print(&format!("pod/{}\n", view.id.name))?;
            }
        }
        Some(format @ (Output::Json | Output::Yaml)) => {
            let objects: Vec<&v1::Pod> = selected.iter().map(|view| &view.object).collect();
            let value = match (objects.as_slice(), query.names.len()) {
                ([one], 1) => serde_json::to_value(one)?,
                _ => serde_json::json!({
                    "apiVersion": "v1", "items": objects, "kind": "List", "metadata": {"resourceVersion": ""},
                }),
            };
            out::print(&document(&value, format)?)?;
        }
    }
    Ok(())
}

/// JSON or YAML text, ended.
fn document(value: &serde_json::Value, format: Output) -> anyhow::Result<String> {
    Ok(match format {
        Output::Json => escape::json(&serde_json::to_string_pretty(value)?) + "\n",
        _ => {
            let text = serde_saphyr::to_string(value).context("the pods cannot be written as YAML")?;
            text.trim_end().to_owned() + "\n"
        }
    })
}

/// Follows changes. Each is a row, as with kubectl; what did not change a cell of the row prints nothing.
async fn watch(client: &Client, query: &Query, views: &[PodView], table: &mut Table) -> anyhow::Result<()> {
    let namespace = query.namespace.as_ref().map_or(String::new(), |own| format!("&namespace={}", super::encode(own)));
    let mut lines = client.stream(&format!("/v1/pods?watch=1{namespace}")).await?;
    let mut shown: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    let mut empty = query.select(views).map_or(0, |selected| selected.len()) == 0;
    let mut first = true;
    while let Some(line) = lines.next_line().await? {
        let event: WatchEvent = serde_json::from_slice(&line).context("the agent's watch is not understood")?;
        if event.kind == "BOOKMARK" {
            first = false;
            continue;
        }
        let uid = event.object.metadata.uid.clone().unwrap_or_default();
        if !query.names.is_empty() && !is_named(query, &event.object) {
            continue;
        }
        let row = query.row(&event.object, Timestamp::now());
        // Ages pass by themselves.
        let state: Vec<String> =
            row.iter().zip(query.header()).filter(|(_, h)| h != "AGE").map(|(c, _)| c.clone()).collect();
        let news = shown.insert(uid.clone(), state.clone()) != Some(state);
        if event.kind == "DELETED" {
            shown.remove(&uid);
        }
        // The pods that were there at first stand in the table above.
        let known = first && views.iter().any(|view| view.id.uid == uid && view.object == event.object);
        if known || !(news || event.kind == "DELETED") {
            continue;
        }
        match query.output {
            None | Some(Output::Wide) => {
                let header = (empty && query.headers).then(|| query.header());
                empty = false;
                out::print(&table.lines(&header.into_iter().chain([row]).collect::<Vec<_>>()))?;
            }
            Some(Output::Name) => out::print(&format!("pod/{}\n", row[usize::from(query.namespace.is_none())]))?,
            Some(Output::Json) => out::print(&document(&serde_json::to_value(&event.object)?, Output::Json)?)?,
            Some(Output::Yaml) => {
                let text = document(&serde_json::to_value(&event.object)?, Output::Yaml)?;
                out::print(&format!("---\n{text}"))?;
            }
        }
    }
    bail!("the agent ended the watch")
}

fn is_named(query: &Query, pod: &v1::Pod) -> bool {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    query.names.iter().any(|wanted| wanted.name == name || format!("{}-{node}", wanted.name) == name)
}

/// Gates of the pod that are open, of all: `1/2`.
fn readiness_gates(pod: &v1::Pod) -> Option<String> {
    let gates = pod.spec.as_ref()?.readiness_gates.as_ref().filter(|gates| !gates.is_empty())?;
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let open = |gate: &&v1::PodReadinessGate| {
        conditions.iter().any(|condition| condition.type_ == gate.condition_type && condition.status == "True")
    };
    Some(format!("{}/{}", gates.iter().filter(open).count(), gates.len()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::print::samples::{now, view};

    fn query(output: Option<Output>, namespace: Option<&str>, names: &[&str]) -> Query {
        let names = names.iter().map(|name| PodName::parse(name, namespace).unwrap()).collect();
        Query { names, namespace: namespace.map(str::to_owned), output, headers: true }
    }

    #[test]
    fn columns() {
        let views = [view("default", "web-node1"), view("shop", "cart-with-a-long-name-node1")];
        let query = query(Some(Output::Wide), None, &[]);
        let rows = query.select(&views).unwrap();
        let rows: Vec<Vec<String>> =
            std::iter::once(query.header()).chain(rows.iter().map(|view| query.row(&view.object, now()))).collect();
        insta::assert_snapshot!(Table::default().lines(&rows));
    }

    #[test]
    fn selection() {
        let views = [view("default", "web-node1"), view("shop", "cart-node1")];
        let names = |query: Query| {
            query.select(&views).map(|found| found.iter().map(|view| view.id.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(names(query(None, Some("default"), &[])).unwrap(), ["default/web-node1"]);
        assert_eq!(names(query(None, None, &[])).unwrap(), ["default/web-node1", "shop/cart-node1"]);
        assert_eq!(names(query(None, None, &["cart"])).unwrap(), ["shop/cart-node1"]);
        assert!(names(query(None, None, &["cart-nod"])).unwrap_err().contains("did you mean"));
    }

    #[test]
    fn a_size_that_cannot_be_given_is_told() {
        let mut view = view("default", "web");
        assert_eq!(infeasible(&view), None);
        let conditions = |reason: &str| {
            let pending =
                serde_json::json!([{"type": "PodResizePending", "status": "True", "reason": reason, "message": "no"}]);
            serde_json::from_value(pending).unwrap()
        };
        let mut told = |reason: &str| {
            view.object.status.as_mut().unwrap().conditions = conditions(reason);
            infeasible(&view)
        };
        assert_eq!(told("Deferred"), None);
        assert_eq!(told("Infeasible").unwrap(), "warning: pod default/web: its resize is not possible: no");
    }

    #[test]
    fn documents() {
        let value = serde_json::to_value(&view("default", "web").object).unwrap();
        insta::assert_snapshot!(document(&value, Output::Yaml).unwrap());
    }
    #[test]
    fn documents_hold_no_control_characters_and_mean_the_same() {
        let value = serde_json::json!({"message": "a\u{9b}2J\u{1b}[2J\u{7f}\r\nb\n", "other": "\u{9b}"});
        let json = document(&value, Output::Json).unwrap();
        let yaml = document(&value, Output::Yaml).unwrap();
        for text in [&json, &yaml] {
            assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        }
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&yaml).unwrap(), value);
    }
}
