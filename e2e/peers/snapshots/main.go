// Snapshots makes the files that `etcdutl snapshot restore` is tested with: what servers of Go etcd 3.4 to
// 3.7 give to `snapshot save`. Run it in its directory; it needs Go and nothing else, and a few minutes to
// build the servers:
//
//	go run . -out ../../../server/crates/etcdutl/tests/data -log ../../../server/crates/fuzz/corpus/go_wal
//
// Revisions, users and keys are the same each time; ids, terms and password hashes are not.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// A release of etcd, and how it is told to leave a compaction unfinished.
type release struct {
	version string
	module  string
	server  string
	tool    string
	slow    []string
}

const slowly = "compaction-sleep-interval=1h"

var releases = []release{
	{
		version: "3.4.13", module: "3.4", server: "go.etcd.io/etcd",
		// Ten milliseconds between the batches, which cannot be set.
		slow: []string{"--experimental-compaction-batch-limit=1"},
	},
	{
		version: "3.5.35", module: "3.5",
		server: "go.etcd.io/etcd/server/v3", tool: "go.etcd.io/etcd/etcdutl/v3",
		slow: []string{"--experimental-compaction-batch-limit=1", "--experimental-" + slowly},
	},
	{
		version: "3.6.16", module: "3.6",
		server: "go.etcd.io/etcd/server/v3", tool: "go.etcd.io/etcd/etcdutl/v3",
		slow: []string{"--compaction-batch-limit=1", "--" + slowly},
	},
	{
		version: "3.7.3", module: "../etcd",
		server: "go.etcd.io/etcd/server/v3", tool: "go.etcd.io/etcd/etcdutl/v3",
		slow: []string{"--compaction-batch-limit=1", "--" + slowly},
	},
}

func main() {
	out := flag.String("out", ".", "where the files go")
	log := flag.String("log", "", "where the logs of the smallest members go; nowhere without")
	bin := flag.String("bin", "", "where the programs are built, and found the next time; a temporary directory without")
	flag.Parse()
	if err := run(target{*out, *log}, *bin); err != nil {
		fmt.Fprintln(os.Stderr, "snapshots:", err)
		os.Exit(1)
	}
}

// Where the files go.
type target struct {
	snapshots, logs string
}

func run(out target, bin string) error {
	work, err := os.MkdirTemp("", "snapshots")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if bin == "" {
		bin = work
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	for _, release := range releases {
		programs, err := release.build(bin)
		if err != nil {
			return err
		}
		directory := filepath.Join(work, release.version)
		if err := release.write(programs, directory, out); err != nil {
			return fmt.Errorf("etcd %s: %w", release.version, err)
		}
	}
	return nil
}

type programs struct {
	server, tool string
}

func (r release) build(bin string) (programs, error) {
	build := func(name, of string) (string, error) {
		path := filepath.Join(bin, name+"-"+r.version)
		command := exec.Command("go", "build", "-trimpath", "-o", path, of)
		command.Dir = r.module
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		command.Stderr = os.Stderr
		return path, command.Run()
	}
	server, err := build("etcd", r.server)
	if err != nil || r.tool == "" {
		return programs{server: server}, err
	}
	tool, err := build("etcdutl", r.tool)
	return programs{server, tool}, err
}

// write makes the files of one release: one with everything in it, and one whose revision was bumped by
// the tools that can.
func (r release) write(programs programs, directory string, out target) error {
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	plain := filepath.Join(directory, "plain.snapshot")
	full := filepath.Join(out.snapshots, "full-"+r.version+".snapshot")
	if err := r.full(programs.server, filepath.Join(directory, "full"), plain, full); err != nil {
		return err
	}
	fmt.Println(full)
	if r.writesV2() {
		behind := filepath.Join(out.snapshots, "behind-"+r.version)
		if err := r.behind(programs.server, filepath.Join(directory, "behind"), behind); err != nil {
			return err
		}
		fmt.Println(behind)
	}
	if !r.bumps() {
		return nil
	}
	bumped := filepath.Join(out.snapshots, "bumped-"+r.version+".snapshot")
	data := filepath.Join(directory, "bumped")
	if err := r.bumped(programs, data, plain, bumped); err != nil {
		return err
	}
	fmt.Println(bumped)
	if out.logs == "" {
		return nil
	}
	return keepLog(data, filepath.Join(out.logs, "etcd-"+r.version))
}

// keepLog copies the one file of a member's log without the zeros that follow what was written.
func keepLog(data, to string) error {
	log, err := os.ReadFile(filepath.Join(data, "member/wal/0000000000000000-0000000000000000.wal"))
	if err != nil {
		return err
	}
	// The length of a record has eight bytes, so the end is found with one of zeros.
	written := bytes.TrimRight(log, "\x00")
	return os.WriteFile(to, log[:(len(written)+15)/8*8], 0o644)
}

// bumps tells whether the tool of this release is one of those whose bumped files are kept.
func (r release) bumps() bool {
	return r.module == "3.6" || r.module == "../etcd"
}

// writesV2 tells whether members of this release publish themselves as requests of version 2.
func (r release) writesV2() bool {
	return r.module == "3.4" || r.module == "3.5"
}

// behind keeps what a data directory would be if nothing had reached the backend since the member was started
// for the second time: the backend of the first time, and the log of both.
func (r release) behind(server, directory, to string) error {
	put := func(key string) func(*member) error {
		return func(member *member) error {
			_, err := member.client.Put(member.ctx, key, "x")
			return err
		}
	}
	if err := serve(server, directory, nil, put("before")); err != nil {
		return err
	}
	backend, err := os.ReadFile(filepath.Join(directory, "member/snap/db"))
	if err != nil {
		return err
	}
	if err := serve(server, directory, nil, put("behind")); err != nil {
		return err
	}
	// The file grows in large steps; pages that were never used are left out.
	written, page := len(bytes.TrimRight(backend, "\x00")), os.Getpagesize()
	backend = backend[:(written+page-1)/page*page]
	if err := os.WriteFile(to+".db", backend, 0o644); err != nil {
		return err
	}
	return keepLog(directory, to+".wal")
}

// full writes the history with the server as it comes, runs out of space, and begins a compaction that
// does not end. What the history alone gives goes to `plain`.
func (r release) full(server, directory, plain, full string) error {
	steps := []struct {
		flags []string
		do    func(*member) error
	}{
		{nil, history},
		{nil, func(member *member) error { return member.save(plain) }},
		{[]string{"--quota-backend-bytes=1"}, runOutOfSpace},
		{r.slow, func(member *member) error {
			if err := leaveCompactionUnfinished(member); err != nil {
				return err
			}
			if err := corrupt(member); err != nil {
				return err
			}
			return member.save(full)
		}},
	}
	for _, step := range steps {
		if err := serve(server, directory, step.flags, step.do); err != nil {
			return err
		}
	}
	return checkFull(full)
}

// bumped restores what the history gave at a far higher revision, and goes on from there.
func (r release) bumped(programs programs, directory, plain, bumped string) error {
	restore := exec.Command(programs.tool, "snapshot", "restore", plain,
		"--bump-revision=1000", "--mark-compacted", "--data-dir="+directory)
	if said, err := restore.CombinedOutput(); err != nil {
		return fmt.Errorf("restore: %w\n%s", err, said)
	}
	return serve(programs.server, directory, nil, func(member *member) error {
		if err := afterBump(member); err != nil {
			return err
		}
		return member.save(bumped)
	})
}
