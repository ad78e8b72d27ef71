use super::*;

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Invocation, CliError> {
    parse(
        arguments.iter().map(|text| (*text).to_owned()),
        environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    )
}

fn raw(arguments: &[&str], environment: &[(&str, &str)]) -> RawConfig {
    match run(arguments, environment) {
        Ok(Invocation::Run(raw)) => raw,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

#[test]
fn flags_read_as_go_reads_them() {
    for arguments in [
        &["--name=a"][..],
        &["-name=a"],
        &["--name", "a"],
        &["-name", "a"],
        &["--name=x", "--name=a"],
    ] {
        assert_eq!(raw(arguments, &[]).text("name"), "a", "{arguments:?}");
    }
    assert_eq!(raw(&["--pre-vote=false"], &[]).text("pre-vote"), "false");
    assert_eq!(raw(&["--force-new-cluster"], &[]).text("force-new-cluster"), "true");
    assert_eq!(raw(&[], &[]).text("name"), "default");
    assert!(matches!(run(&["--version"], &[]), Ok(Invocation::Version)));
    assert!(matches!(run(&["-h"], &[]), Ok(Invocation::Help)));
    assert!(matches!(run(&["--help"], &[]), Ok(Invocation::Help)));
}

/// The texts are those that etcd 3.7.3 prints for the same command lines.
#[test]
fn unreadable_command_lines_get_the_texts_of_etcd() {
    let usage = [
        (&["--foo"][..], "flag provided but not defined: -foo"),
        (&["-name"], "flag needs an argument: -name"),
        (&["---x"], "bad flag syntax: ---x"),
        (
            &["--heartbeat-interval=x"],
            "invalid value \"x\" for flag -heartbeat-interval: parse error",
        ),
        (
            &["--enable-pprof=maybe"],
            "invalid boolean value \"maybe\" for -enable-pprof: parse error",
        ),
        (
            &["--listen-peer-urls=foo"],
            "invalid value \"foo\" for flag -listen-peer-urls: URL scheme must be http, https, unix, or unixs: foo",
        ),
        (
            &["--max-concurrent-streams=x"],
            "invalid value \"x\" for flag -max-concurrent-streams: strconv.ParseUint: parsing \"x\": invalid syntax",
        ),
        (
            &["--feature-gates=Foo=true"],
            "invalid value \"Foo=true\" for flag -feature-gates: unrecognized feature gate: Foo",
        ),
        (
            &["--initial-cluster-state=bar"],
            "invalid value \"bar\" for flag -initial-cluster-state: invalid value",
        ),
        (
            &["--v2-deprecation=not-yet"],
            "invalid value \"not-yet\" for flag -v2-deprecation: invalid value \"not-yet\"",
        ),
        (
            &["--grpc-keepalive-min-time=5"],
            "invalid value \"5\" for flag -grpc-keepalive-min-time: parse error",
        ),
    ];
    for (arguments, text) in usage {
        assert_eq!(run(arguments, &[]).unwrap_err(), CliError::Usage(text.to_owned()));
    }
    assert_eq!(
        run(&["positional"], &[]).unwrap_err(),
        CliError::Verify("\"positional\" is not a valid flag".to_owned())
    );
}

#[test]
fn the_environment_sets_what_the_command_line_left_open() {
    let raw_config =
        raw(&["--name=a"], &[("ETCD_DATA_DIR", "/d"), ("HOME", "/"), ("ETCD_FOO", "x")]);
    assert_eq!(raw_config.text("data-dir"), "/d");
    assert_eq!(raw_config.warnings, ["unrecognized environment variable ETCD_FOO"]);
    let shadowed = run(&["--name=a"], &[("ETCD_NAME", "b")]).unwrap_err();
    assert_eq!(shadowed, CliError::Shadowed { variable: "ETCD_NAME".to_owned() });
    assert_eq!(
        run(&[], &[("ETCD_HEARTBEAT_INTERVAL", "z")]).unwrap_err(),
        CliError::Verify("invalid value \"z\" for ETCD_HEARTBEAT_INTERVAL: parse error".to_owned())
    );
}

#[test]
fn a_configuration_file_leaves_nothing_of_flags_and_environment() {
    let raw_config = raw(&["--name=a", "--config-file=/c.yaml"], &[("ETCD_DATA_DIR", "/d")]);
    assert_eq!(raw_config.config_file.as_deref(), Some("/c.yaml"));
    assert!(!raw_config.is_set("name") && !raw_config.is_set("data-dir"));
    let raw_config = raw(&[], &[("ETCD_CONFIG_FILE", "/c.yaml")]);
    assert_eq!(raw_config.config_file.as_deref(), Some("/c.yaml"));
}

#[test]
fn what_is_not_supported_is_refused_or_said_and_never_ignored() {
    let refused = raw(&["--discovery=http://a/b"], &[]).check_supported().unwrap_err();
    assert!(refused.to_string().contains("--discovery-endpoints"), "{refused}");
    let refused = raw(&["--enable-v2"], &[]).check_supported().unwrap_err().to_string();
    assert_eq!(refused, "--enable-v2=true: the v2 API was removed in etcd 3.6; use the v3 API");
    let told = raw(&[], &[("ETCD_ENABLE_V2", "true")]).check_supported().unwrap();
    assert_eq!(
        told,
        ["--enable-v2 has no effect: the v2 API was removed in etcd 3.6; use the v3 API"]
    );
    assert!(raw(&[], &[("ETCD_PROXY", "on")]).check_supported().is_err(), "it would be a member");
    assert_eq!(raw(&["--auto-tls=false", "--bcrypt-cost=10"], &[]).check_supported(), Ok(vec![]));
    let warnings = raw(&["--unsafe-no-fsync"], &[]).check_supported().unwrap();
    assert!(warnings[0].starts_with("--unsafe-no-fsync has no effect"), "{warnings:?}");
}

#[test]
fn names_of_older_versions_lead_to_the_present_ones() {
    let raw_config = raw(
        &[
            "--experimental-watch-progress-notify-interval=5s",
            "--experimental-initial-corrupt-check",
        ],
        &[],
    );
    assert_eq!(raw_config.text("watch-progress-notify-interval"), "5s");
    assert_eq!(raw_config.gates, [("InitialCorruptCheck", true)]);
    assert!(raw(&["--snapshot=x", "-v"], &[]).check_supported().unwrap().is_empty());
}

#[test]
fn the_help_names_every_flag_that_is_not_hidden() {
    let help = full_help();
    for flag in flags::all().filter(|flag| flag.group != flags::Group::Hidden) {
        assert!(help.contains(&format!("  --{} '", flag.name)), "--{}", flag.name);
    }
}
