package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	clientURL = "http://127.0.0.1:23791"
	// What a restored member has without flags, so that its directory can be served.
	peerURL = "http://localhost:2380"
	limit   = time.Minute
)

// A member that runs, and a client of it.
type member struct {
	client *clientv3.Client
	ctx    context.Context
}

// serve runs a member on a directory while something is done with it.
func serve(server, directory string, flags []string, do func(*member) error) error {
	line := []string{
		"--data-dir=" + directory,
		"--listen-client-urls=" + clientURL,
		"--advertise-client-urls=" + clientURL,
		"--listen-peer-urls=http://127.0.0.1:23801",
		"--initial-advertise-peer-urls=" + peerURL,
		"--initial-cluster=default=" + peerURL,
		// So that logins to what is restored are quick.
		"--bcrypt-cost=4",
	}
	log, err := os.Create(directory + ".log")
	if err != nil {
		return err
	}
	defer log.Close()
	process := exec.Command(server, append(line, flags...)...)
	process.Stdout, process.Stderr = log, log
	if err := process.Start(); err != nil {
		return err
	}
	err = talk(do)
	// A compaction that sleeps for an hour would be waited for.
	_ = process.Process.Signal(syscall.SIGTERM)
	ended := time.AfterFunc(10*time.Second, func() { _ = process.Process.Kill() })
	_ = process.Wait()
	ended.Stop()
	if err != nil {
		said, _ := os.ReadFile(directory + ".log")
		return fmt.Errorf("%w\n%s", err, said)
	}
	return nil
}

func talk(do func(*member) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	client, err := connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return do(&member{client, ctx})
}

// connect waits until the member answers: as root once there are users that count.
func connect(ctx context.Context) (*clientv3.Client, error) {
	config := clientv3.Config{Endpoints: []string{clientURL}, DialTimeout: limit, Logger: zap.NewNop()}
	for {
		client, err := clientv3.New(config)
		if err == nil {
			if _, err = client.Get(ctx, "any"); err == nil {
				return client, nil
			}
			_ = client.Close()
			if errors.Is(err, rpctypes.ErrUserEmpty) {
				config.Username, config.Password = "root", rootPassword
				continue
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("the member does not answer: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// save does what `etcdctl snapshot save` does.
func (m *member) save(path string) error {
	stream, err := m.client.Snapshot(m.ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, stream)
	return errors.Join(err, file.Close())
}

// checkFull refuses a file that lacks what was to be in it.
func checkFull(path string) error {
	file, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer file.Close()
	return file.View(func(tx *bolt.Tx) error {
		meta := tx.Bucket([]byte("meta"))
		scheduled, finished := meta.Get([]byte("scheduledCompactRev")), meta.Get([]byte("finishedCompactRev"))
		if string(scheduled) <= string(finished) || finished == nil {
			return fmt.Errorf("the compaction at %x has finished at %x: run it again", scheduled, finished)
		}
		for bucket, rows := range map[string]int{
			"alarm": 2, "lease": 3, "members": 2, "members_removed": 1, "authUsers": 4, "authRoles": 4,
		} {
			if found := tx.Bucket([]byte(bucket)).Stats().KeyN; found != rows {
				return fmt.Errorf("%d rows in bucket %s instead of %d", found, bucket, rows)
			}
		}
		return nil
	})
}
