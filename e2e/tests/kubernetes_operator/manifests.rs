//! Everything that the repository offers to be applied is accepted by a real API server, with its
//! defaults, its CEL and its refusal of unknown fields: the plain installation, every example, and
//! what the chart of a cluster renders. Nothing is created: each is a dry run by the server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::kubernetes::{Cluster, Namespace};
use serde_json::{Value, json};

use crate::product::{kubernetes, repository};

/// Namespace that the plain installation brings along; objects in it need it to be there.
const INSTALLATION: &str = "etcd-operator-system";

/// The entries of a directory, sorted.
fn listed(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()));
    let mut found = entries?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<PathBuf>>>()?;
    found.sort();
    Ok(found)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// How many objects a YAML text holds.
fn objects(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("kind:")).count()
}

/// The server says of each object what it would do.
fn dry_run(cluster: &Cluster, namespace: &str, name: &str, text: &str) -> Result<()> {
    let line = ["-n", namespace, "apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    let said = cluster.access().kubectl(line).input(text).run();
    let said = said.with_context(|| format!("dry run of {name}"))?;
    let accepted = said.lines().filter(|line| line.ends_with("(server dry run)")).count();
    ensure!(
        accepted > 0 && accepted == objects(text),
        "{name} has {} objects, the server spoke of {accepted}: {said}",
        objects(text)
    );
    Ok(())
}

fn dry_run_file(cluster: &Cluster, namespace: &str, path: &Path) -> Result<()> {
    ensure!(
        path.is_file() && path.extension().is_some_and(|extension| extension == "yaml"),
        "{} is no YAML file: say here how it is tested",
        path.display()
    );
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    dry_run(cluster, namespace, &file_name(path), &text)
}

#[test]
fn every_example_is_accepted_by_the_server() -> Result<()> {
    let cluster = kubernetes()?;
    let namespace = Namespace::new(&cluster, "examples")?;
    let examples = listed(&repository().join("manifests/examples"))?;
    for example in &examples {
        dry_run_file(&cluster, namespace.name(), example)?;
    }
    ensure!(examples.len() >= 7, "only {} examples", examples.len());
    Ok(())
}

#[test]
fn the_plain_installation_is_accepted_by_the_server() -> Result<()> {
    let cluster = kubernetes()?;
    let manifests = repository().join("manifests");
    let names: Vec<String> = listed(&manifests)?.iter().map(|path| file_name(path)).collect();
    ensure!(
        names == ["crds", "examples", "operator.yaml"],
        "manifests/ holds {names:?}: a new one needs a test"
    );
    let namespace = Namespace::restricted(&cluster, INSTALLATION)?;
    for definition in listed(&manifests.join("crds"))? {
        dry_run_file(&cluster, namespace.name(), &definition)?;
    }
    dry_run_file(&cluster, namespace.name(), &manifests.join("operator.yaml"))
}

/// What a role gives: its rules, as they are written.
type Roles = BTreeMap<(String, String, String), Value>;

/// The objects in this text.
fn parsed(cluster: &Cluster, text: &str) -> Result<Vec<Value>> {
    let line = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"];
    let objects = cluster.access().kubectl(line).input(text).run()?;
    serde_json::Deserializer::from_str(&objects)
        .into_iter::<Value>()
        .collect::<Result<Vec<Value>, _>>()
        .context("read what kubectl prints")
}

/// The roles among these objects, each with a binding that gives it to the operator and to nobody else.
fn roles(cluster: &Cluster, text: &str) -> Result<Roles> {
    let objects = parsed(cluster, text)?;
    let key = |object: &Value| {
        let metadata = &object["metadata"];
        (text_of(&object["kind"]), text_of(&metadata["namespace"]), text_of(&metadata["name"]))
    };
    let of = |kind: &str| -> Vec<&Value> {
        objects.iter().filter(|object| text_of(&object["kind"]).ends_with(kind)).collect()
    };
    let mut bound = Vec::new();
    for binding in of("RoleBinding") {
        let (kind, namespace, name) = key(binding);
        let role = &binding["roleRef"];
        let subjects = binding["subjects"].as_array().cloned().unwrap_or_default();
        ensure!(
            kind == format!("{}Binding", text_of(&role["kind"]))
                && role["name"] == name.as_str()
                && subjects.len() == 1
                && subjects[0]["kind"] == "ServiceAccount"
                && subjects[0]["name"] == "etcd-operator",
            "{binding}"
        );
        bound.push((text_of(&role["kind"]), namespace, name));
    }
    bound.sort();
    let roles: Roles =
        of("Role").into_iter().map(|role| (key(role), role["rules"].clone())).collect();
    ensure!(bound == roles.keys().cloned().collect::<Vec<_>>(), "bound are {bound:?}: {roles:?}");
    Ok(roles)
}

fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// That the rules are what the operator needs and no more is tested in the operator; this is how far
/// each reaches, in every mode of the chart.
#[test]
fn the_chart_of_the_operator_gives_each_right_only_where_it_is_wanted() -> Result<()> {
    let cluster = kubernetes()?;
    let repository = repository();
    let plain = fs::read_to_string(repository.join("manifests/operator.yaml"))?;
    let plain = roles(&cluster, &plain)?;
    let rules = |name: &str| {
        let found = plain.iter().find(|((_, _, other), _)| other == name);
        found.map(|(_, rules)| rules.clone()).with_context(|| format!("no {name}"))
    };
    let everywhere = |name: &'static str| ("ClusterRole", "", name);
    let leader = ("Role", "ours", "etcd-operator-leader");
    let (work, secrets) = ("etcd-operator", "etcd-operator-secrets");
    let nodes = everywhere("etcd-operator-nodes");
    for (values, wanted) in [
        ("rbac.create=true", vec![everywhere(work), everywhere(secrets), leader, nodes]),
        (
            "rbac.secretNamespaces={a},rbac.nodeAccess=false",
            vec![everywhere(work), ("Role", "a", secrets), leader],
        ),
        (
            "watchNamespaces={a,b},rbac.nodeAccess=false",
            vec![
                ("Role", "a", work),
                ("Role", "b", work),
                ("Role", "a", secrets),
                ("Role", "b", secrets),
                leader,
            ],
        ),
        (
            "watchNamespaces={a,b},rbac.secretNamespaces={b}",
            vec![("Role", "a", work), ("Role", "b", work), ("Role", "b", secrets), leader, nodes],
        ),
        ("rbac.create=false", vec![]),
    ] {
        let rendered = render_operator(&cluster, "etcd-operator", "ours", values)?;
        let wanted = wanted.into_iter().map(|(kind, namespace, name)| {
            // Where others may be, too, it bears the name of the operator's own namespace.
            let prefix = if namespace == "ours" { "" } else { "ours-" };
            Ok(((kind.to_owned(), namespace.to_owned(), format!("{prefix}{name}")), rules(name)?))
        });
        let wanted = wanted.collect::<Result<Roles>>()?;
        let found = roles(&cluster, &rendered).with_context(|| values.to_owned())?;
        ensure!(found == wanted, "{values} gives {found:?} and not {wanted:?}");
    }
    Ok(())
}

fn render_operator(
    cluster: &Cluster,
    release: &str,
    namespace: &str,
    values: &str,
) -> Result<String> {
    let chart = repository().join("charts/etcd-operator");
    cluster
        .access()
        .helm(["template", release])
        .args([chart.as_os_str()])
        .args(["--namespace", namespace, "--set", "crds.enabled=false", "--set", values])
        .run()
}

/// Two of one name in two namespaces, and two in one namespace: neither takes the objects of the other,
/// and each has a leader.
#[test]
fn two_releases_of_the_operator_have_nothing_in_common() -> Result<()> {
    let cluster = kubernetes()?;
    for values in ["rbac.create=true", "watchNamespaces={a}"] {
        let mut seen = BTreeSet::new();
        for (release, namespace) in [("one", "here"), ("one", "there"), ("two", "here")] {
            let rendered = render_operator(&cluster, release, namespace, values)?;
            for object in parsed(&cluster, &rendered)? {
                let text = format!("{} {}", object["kind"], object["metadata"]["name"]);
                let place = text_of(&object["metadata"]["namespace"]);
                ensure!(seen.insert((text.clone(), place)), "{text} of {release} in {namespace}");
                // What it may write is what it is told to.
                if object["kind"] == "Role" && text.contains("-leader") {
                    ensure!(object["rules"][1]["resourceNames"] == json!([release]), "{object}");
                }
                if object["kind"] == "Deployment" {
                    let variables = &object["spec"]["template"]["spec"]["containers"][0]["env"];
                    let lease = json!({"name": "LEASE_NAME", "value": release});
                    let variables = variables.as_array().cloned().unwrap_or_default();
                    ensure!(variables.contains(&lease), "{variables:?}");
                }
            }
        }
        ensure!(seen.len() >= 3 * 9, "only {seen:?}");
    }
    Ok(())
}

/// The operator's own chart is installed by all tests; that of a cluster is rendered here, as it
/// is and with everything that a user may set.
#[test]
fn what_the_chart_of_a_cluster_renders_is_accepted_by_the_server() -> Result<()> {
    let cluster = kubernetes()?;
    let charts = repository().join("charts");
    let names: Vec<String> = listed(&charts)?.iter().map(|path| file_name(path)).collect();
    ensure!(names == ["etcd-cluster", "etcd-operator"], "charts/ holds {names:?}");
    let namespace = Namespace::new(&cluster, "chart")?;
    let everything = "\
        nameOverride: renamed\n\
        replicaCount: 5\n\
        image: {repository: example.com/etcd, version: 3.7.4, tag: v3.7.4}\n\
        persistence: {size: 1.5Gi, storageClass: fast}\n\
        tls: {enabled: false}\n\
        deletionPolicy: Delete\n\
        backupStore: {type: PersistentVolumeClaim, persistentVolumeClaim: {claimName: backups}}\n\
        backupSchedule: '@daily'\n\
        backupRetention: {daily: 7, weekly: 4}\n\
        spec: {config: {logLevel: Debug}, quota: {backend: 1Gi}}\n";
    for (values, expected) in [("", 1), (everything, 2)] {
        let rendered = cluster
            .access()
            .helm(["template", "example"])
            .args([charts.join("etcd-cluster").as_os_str()])
            .args(["--namespace", namespace.name(), "--values", "-"])
            .input(values)
            .run()
            .context("render charts/etcd-cluster")?;
        ensure!(objects(&rendered) == expected, "{expected} objects are wanted: {rendered}");
        dry_run(&cluster, namespace.name(), "charts/etcd-cluster", &rendered)?;
    }
    Ok(())
}
