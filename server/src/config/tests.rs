use super::*;
use crate::cli::{Invocation, parse};
use crate::urls::Hosts;

fn config(arguments: &[&str]) -> Result<Config, ConfigError> {
    match parse(arguments.iter().map(|text| (*text).to_owned()), []) {
        Ok(Invocation::Run(raw)) => Config::load(raw),
        other => panic!("{arguments:?}: {other:?}"),
    }
}

#[test]
fn the_defaults_are_those_of_etcd() {
    let config = config(&[]).unwrap();
    assert_eq!(config.data_dir, "default.etcd");
    assert_eq!(config.raft.election_timeout, Duration::from_secs(1));
    assert_eq!(config.limits.request_bytes_max, 1_572_864);
    assert_eq!(config.limits.quota_bytes, Some(QUOTA_BYTES_DEFAULT));
    assert_eq!(config.listen.client_urls[0].as_str(), "http://localhost:2379");
    assert_eq!(config.cluster.initial.to_string(), "default=http://localhost:2380");
    assert_eq!(config.listen.keepalive_interval, Some(Duration::from_secs(7200)));
    assert_eq!(config.compaction.retention, None);
}

/// The metric of gates says what was set; this is what comes of it.
#[test]
fn gates_turn_on_what_they_are_named_for() {
    let with = |gates: &str| config(&[&format!("--feature-gates={gates}")]).unwrap();
    let checkpoints = |gates| crate::leases::options(&with(gates)).checkpoint_interval;
    assert_eq!(checkpoints("LeaseCheckpoint=false"), None);
    assert_eq!(checkpoints("LeaseCheckpoint=true"), Some(Duration::from_secs(300)));
    let comparisons = |gates| with(gates).compaction_checks();
    assert_eq!(comparisons("CompactHashCheck=false"), None);
    assert_eq!(comparisons("CompactHashCheck=true"), Some(Duration::from_secs(60)));
    let priority = |gates| crate::boot::rules(&with(gates)).priority_requests;
    assert!(!priority("PriorityRequest=false"));
    assert!(priority("PriorityRequest=true"));
}

#[test]
fn a_name_alone_names_the_initial_cluster() {
    let config =
        config(&["--name=a", "--initial-advertise-peer-urls=http://10.0.0.1:2380"]).unwrap();
    assert_eq!(config.cluster.initial.to_string(), "a=http://10.0.0.1:2380");
    config
        .cluster
        .initial
        .check_founding(&config.name, &config.cluster.advertise_peer_urls, &Hosts::patient())
        .unwrap();
}

/// In etcd's words, one for each URL, also beside URLs that are as they should be.
#[test]
fn tls_that_a_url_does_not_use_is_told() {
    const PAIR: &str = "key and cert files are present; ignoring key and cert files";
    const AUTH: &str = "is enabled; ignoring client cert auth for this URL";
    let files = [env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"].concat();
    let told = |flags: &str| {
        let flags = flags.replace("FILE", &files);
        let arguments: Vec<&str> = flags.split(' ').collect();
        let told = config(&arguments).unwrap().warnings.into_iter();
        told.filter(|told| told.starts_with("scheme is")).collect::<Vec<_>>()
    };
    let client = "--advertise-client-urls=http://h:1 --listen-client-urls";
    let peer = "--listen-peer-urls=http://127.0.0.1:2";
    let pair = "--cert-file=FILE --key-file=FILE";
    assert_eq!(
        told(&format!("{pair} {client}=https://127.0.0.1:1,http://127.0.0.1:3")),
        [format!("scheme is http or unix while {PAIR}: http://127.0.0.1:3")]
    );
    assert_eq!(
        told(&format!("--client-cert-auth --trusted-ca-file=FILE {client}=http://127.0.0.1:3")),
        [format!("scheme is http or unix while --client-cert-auth {AUTH}: http://127.0.0.1:3")]
    );
    assert_eq!(
        told(&format!(
            "{peer} --peer-client-cert-auth --peer-auto-tls --peer-trusted-ca-file=FILE"
        )),
        [
            format!("scheme is HTTP while {PAIR}: http://127.0.0.1:2"),
            format!("scheme is HTTP while --peer-client-cert-auth {AUTH}: http://127.0.0.1:2"),
        ]
    );
    assert_eq!(told(&format!("{pair} {client}=https://127.0.0.1:1")), Vec::<String>::new());
}

/// The texts are those that etcd 3.7.3 logs for the same command lines.
#[test]
fn contradictions_are_refused_in_the_words_of_etcd() {
    let cases = [
        (
            &["--listen-client-urls=http://1.2.3.4:1"][..],
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            &["--election-timeout=100"],
            "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]",
        ),
        (
            &["--election-timeout=60000"],
            "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
        ),
        (&["--heartbeat-interval=0"], "--heartbeat-interval must be >0 (set to 0ms)"),
        (
            &["--listen-peer-urls=http://a.example:1"],
            "expected IP in URL for binding (http://a.example:1)",
        ),
        (&["--auto-compaction-mode=x"], "unknown auto-compaction-mode \"x\""),
        (&["--logger=capnslog"], "--logger=capnslog is removed in v3.5"),
        (
            &["--tls-min-version=TLS1.1"],
            "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)",
        ),
        (
            &["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"],
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        (
            &[
                "--listen-client-urls=https://127.0.0.1:1",
                "--advertise-client-urls=https://127.0.0.1:1",
            ],
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
        ),
        (
            &["--feature-gates=LeaseCheckpointPersist=true"],
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
        ),
    ];
    for (arguments, text) in cases {
        assert_eq!(config(arguments).unwrap_err().0, text, "{arguments:?}");
    }
}

/// etcd would believe every authority that the system knows.
#[test]
fn certificates_are_not_asked_for_without_an_authority_to_believe() {
    for (kind, url) in [("", "client"), ("peer-", "peer")] {
        let arguments = [
            format!("--{kind}cert-file=/c"),
            format!("--{kind}key-file=/k"),
            format!("--{kind}client-cert-auth"),
            format!("--listen-{url}-urls=https://127.0.0.1:1"),
            "--advertise-client-urls=https://127.0.0.1:1".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        assert_eq!(
            config(&arguments).unwrap_err().0,
            format!(
                "--{kind}client-cert-auth needs --{kind}trusted-ca-file to check the certificates with"
            )
        );
    }
}

#[test]
fn the_initial_cluster_must_name_this_member_as_it_advertises_itself() {
    let check = |initial: &str| {
        let initial = InitialCluster::parse(initial).unwrap();
        let own = parse_urls("http://10.0.0.1:2380").unwrap();
        initial.check_founding("a", &own, &Hosts::patient()).map_err(|error| error.0)
    };
    assert_eq!(check("a=http://10.0.0.1:2380,b=http://10.0.0.2:2380"), Ok(()));
    assert_eq!(
        check("b=http://10.0.0.2:2380").unwrap_err(),
        "couldn't find local name \"a\" in the initial cluster configuration"
    );
    assert_eq!(
        check("a=http://10.0.0.9:2380").unwrap_err(),
        "--initial-cluster has a=http://10.0.0.9:2380 but missing from \
         --initial-advertise-peer-urls=http://10.0.0.1:2380 (resolved urls: \
         \"http://10.0.0.1:2380\" != \"http://10.0.0.9:2380\")"
    );
    assert_eq!(check("a=http://[::ffff:10.0.0.1]:2380"), Ok(()), "another way to write it");
    assert!(
        check("a=http://10.0.0.1:2380,b=http://10.0.0.1:2380")
            .unwrap_err()
            .contains("duplicate url")
    );
}

/// The command line that kubeadm writes into its static pod.
#[test]
fn the_command_line_of_kubeadm_is_accepted() {
    config(&[
        "--advertise-client-urls=https://10.0.0.1:2379",
        "--cert-file=/etc/kubernetes/pki/etcd/server.crt",
        "--client-cert-auth=true",
        "--data-dir=/var/lib/etcd",
        "--feature-gates=InitialCorruptCheck=true",
        "--initial-advertise-peer-urls=https://10.0.0.1:2380",
        "--initial-cluster=m=https://10.0.0.1:2380",
        "--key-file=/etc/kubernetes/pki/etcd/server.key",
        "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379",
        "--listen-metrics-urls=http://127.0.0.1:2381",
        "--listen-peer-urls=https://10.0.0.1:2380",
        "--name=m",
        "--peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt",
        "--peer-client-cert-auth=true",
        "--peer-key-file=/etc/kubernetes/pki/etcd/peer.key",
        "--peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
        "--snapshot-count=10000",
        "--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
        "--watch-progress-notify-interval=5s",
    ])
    .unwrap();
}

#[test]
fn tracing_is_checked_only_where_it_is_enabled() {
    let rate = |rate: &str| format!("--distributed-tracing-sampling-rate={rate}");
    let with_rate = |text: &str| config(&["--enable-distributed-tracing", &rate(text)]);
    for (text, why) in [("-1", "must be positive"), ("1000001", "must be less than 1000000")] {
        let expected = format!(
            "distributed tracing configurition is not valid: (tracing sampling rate {why})"
        );
        assert_eq!(with_rate(text).unwrap_err().to_string(), expected);
        assert_eq!(config(&[&rate(text)]).unwrap().tracing, None, "off");
    }
    let tracing = |config: Result<Config, ConfigError>| config.unwrap().tracing.unwrap();
    for sampling_rate in [0, 1, 1_000_000] {
        let expected = TracingConfig {
            collector: "localhost:4317".to_owned(),
            service_name: "etcd".to_owned(),
            instance_id: String::new(),
            sampling_rate,
        };
        assert_eq!(tracing(with_rate(&sampling_rate.to_string())), expected);
    }
    // As etcd 3.5 has them.
    let older = tracing(config(&[
        "--experimental-enable-distributed-tracing=true",
        "--experimental-distributed-tracing-address=collector:1",
        "--experimental-distributed-tracing-service-name=service",
        "--experimental-distributed-tracing-instance-id=instance",
        "--experimental-distributed-tracing-sampling-rate=5",
    ]));
    let expected = TracingConfig {
        collector: "collector:1".to_owned(),
        service_name: "service".to_owned(),
        instance_id: "instance".to_owned(),
        sampling_rate: 5,
    };
    assert_eq!(older, expected);
}
