//! `cargo xtask up` and `down`: the whole product on this machine, and no trace of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use e2e::kubernetes::{Access, Cluster, Layout, Lifetime, Settings, program::Program, sweep};

use crate::operator::Operator;
use crate::progress::Progress;
use crate::workspace::{Profile, Workspace};
use crate::{image, local, prerequisites};

const NODES: u8 = 3;

#[derive(Args)]
pub(crate) struct Options {
    /// Use an existing Kubernetes, by the name of its kubectl context.
    #[arg(long, value_name = "NAME", conflicts_with = "no_kubernetes")]
    context: Option<String>,
    /// With --context: an image that this Kubernetes can pull. Not needed for kind and minikube.
    #[arg(long, value_name = "REPOSITORY:TAG", requires = "context")]
    image: Option<String>,
    /// Start three local etcd processes instead; needs no root.
    #[arg(long)]
    no_kubernetes: bool,
    /// Another etcd as the local Kubernetes' own store, for comparison.
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["no_kubernetes", "context"])]
    store: Option<PathBuf>,
    /// Only the Kubernetes, with the images that the cluster tests need; they install the rest.
    #[arg(long, conflicts_with_all = ["no_kubernetes", "context"])]
    for_tests: bool,
    /// Compile our programs quickly instead of well.
    #[arg(long)]
    dev: bool,
}

#[derive(Args)]
pub(crate) struct DownOptions {
    /// Remove the operator and the example from this existing Kubernetes instead.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

pub(crate) fn up(workspace: &Workspace, progress: &Progress, options: &Options) -> Result<()> {
    let profile = Profile::chosen(options.dev);
    if options.no_kubernetes {
        return local::up(workspace, progress, profile);
    }
    if let Some(context) = &options.context {
        return up_on(workspace, progress, context, options);
    }
    prerequisites::require_space(workspace)?;
    prerequisites::for_kubernetes(workspace, progress)?;
    Layout::new(workspace.state())?;
    workspace.build_peers(progress)?;
    // The next version first: the programs that stay are those that are shipped.
    let next = match options.for_tests {
        true => Some(image::assemble_next(workspace, progress, profile)?),
        false => None,
    };
    workspace.build_programs(progress, profile)?;
    let image = image::assemble(workspace, progress, profile)?;
    let store = options.store.clone().unwrap_or_else(|| workspace.program(profile, "etcd"));
    let cluster = start_cluster(workspace, progress, store, Lifetime::Detached)?;
    progress.working("load the image into the nodes", || cluster.load_image(&image.tarball))?;
    if let Some(next) = next {
        progress.working("load the next version into the nodes", || {
            cluster.load_image(&next.tarball)
        })?;
        println!("\nTry next:\n  export KEELSON_STATE={}", workspace.state().display());
        println!(
            "  cargo test -p e2e --features cluster --test kubernetes_operator -- --test-threads=1"
        );
        return Ok(());
    }
    Operator { workspace, progress, access: cluster.access() }.install(&image.name)?;
    say_what_next(workspace, cluster.access());
    Ok(())
}

/// Starts the local Kubernetes; the peers must be built.
pub(crate) fn start_cluster(
    workspace: &Workspace,
    progress: &Progress,
    store: PathBuf,
    lifetime: Lifetime,
) -> Result<Cluster> {
    let store = fs::canonicalize(&store)
        .with_context(|| format!("find the store's program {}", store.display()))?;
    let settings = Settings {
        state: workspace.state().to_owned(),
        programs: workspace.peers(),
        store,
        nodes: NODES,
        lifetime,
    };
    progress.working("start a Kubernetes of three nodes", || {
        Cluster::start(settings, &|what| progress.say(&format!("  {what}")))
    })
}

fn up_on(
    workspace: &Workspace,
    progress: &Progress,
    context: &str,
    options: &Options,
) -> Result<()> {
    let access = existing(workspace, progress, context)?;
    access
        .kubectl(["get", "--raw=/readyz"])
        .run()
        .with_context(|| format!("reach the Kubernetes of context {context}"))?;
    let image = match &options.image {
        Some(image) => image.clone(),
        None => load_into(workspace, progress, context, Profile::chosen(options.dev))?,
    };
    Operator { workspace, progress, access: &access }.install(&image)?;
    say_what_next(workspace, &access);
    Ok(())
}

/// kubectl and helm from PATH, or else built as for the local Kubernetes.
fn existing(workspace: &Workspace, progress: &Progress, context: &str) -> Result<Access> {
    let found = ["kubectl", "helm"].map(prerequisites::find);
    if found.iter().any(Option::is_none) {
        prerequisites::require_go()?;
        workspace.build_peers(progress)?;
    }
    let [kubectl, helm] = found;
    Ok(Access {
        kubectl: kubectl.unwrap_or_else(|| workspace.peers().join("kubectl")),
        helm: helm.unwrap_or_else(|| workspace.peers().join("helm")),
        kubeconfig: None,
        context: Some(context.to_owned()),
        caches: workspace.state().join("caches"),
    })
}

/// Brings our image into the Kubernetes of tools that can take one from a file.
fn load_into(
    workspace: &Workspace,
    progress: &Progress,
    context: &str,
    profile: Profile,
) -> Result<String> {
    let (tool, arguments): (&str, Vec<&str>) = match context.strip_prefix("kind-") {
        Some(name) => ("kind", vec!["load", "image-archive", "--name", name]),
        None if context == "minikube" => ("minikube", vec!["image", "load"]),
        None => bail!(
            "push the image of `cargo xtask image` to a registry that the Kubernetes of {context} \
             can pull from, and name it: --image REPOSITORY:TAG"
        ),
    };
    workspace.build_programs(progress, profile)?;
    let built = image::assemble(workspace, progress, profile)?;
    progress.working(&format!("load the image with {tool}"), || {
        Program::new(tool).args(arguments).args([&built.tarball]).run()
    })?;
    Ok(built.name)
}

pub(crate) fn down(
    workspace: &Workspace,
    progress: &Progress,
    options: &DownOptions,
) -> Result<()> {
    if let Some(context) = &options.context {
        let access = existing(workspace, progress, context)?;
        return Operator { workspace, progress, access: &access }.remove();
    }
    local::down(workspace, progress)?;
    let layout = Layout::new(workspace.state())?;
    if layout.root().exists() || Path::new("/sys/class/net/keelson0").exists() {
        progress.working("remove the local Kubernetes", || sweep(&layout))?;
    }
    progress.say(&format!(
        "nothing of it is left; built programs stay in {} until `cargo clean`",
        workspace.state().display()
    ));
    Ok(())
}

fn say_what_next(workspace: &Workspace, access: &Access) {
    let bin = workspace.peers();
    println!("\nTry next:");
    if let Some(kubeconfig) = &access.kubeconfig {
        println!("  export KUBECONFIG={} PATH={}:$PATH", kubeconfig.display(), bin.display());
    }
    if let Some(context) = &access.context {
        println!("  kubectl config use-context {context}");
    }
    println!("  kubectl get nodes,pods -A");
    println!("  kubectl get etcdclusters,etcdmembers,etcdbackups -A");
    println!("  kubectl exec example-1 -- etcdctl member list --write-out=table");
    println!("  kubectl scale etcdcluster example --replicas=5   # and back");
    println!("  kubectl delete pod example-1                     # and watch it come back");
    println!("  cargo xtask down");
}
