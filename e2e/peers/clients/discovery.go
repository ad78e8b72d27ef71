package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// work is the worker of a service: its address is registered for as long as it lives.
func work(endpoints []string, key, address string, ttl int64) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	client, err := connect(endpoints)
	if err != nil {
		return err
	}
	defer client.Close()
	lease, err := client.Grant(ctx, ttl)
	if err != nil {
		return err
	}
	beats, err := client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, key, address, clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	fmt.Println("registered", key)
	for range beats {
	}
	if ctx.Err() == nil {
		return fmt.Errorf("the registration of %s was lost", key)
	}
	// Told to go: it leaves at once instead of when the lease ends.
	leave, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = client.Revoke(leave, lease.ID)
	return err
}

// master knows who serves: from one read, and from then on by watching.
type master struct {
	r       *run
	changes clientv3.WatchChan
	serving map[string]string
	joined  int
	left    int
}

func newMaster(r *run) *master {
	m := &master{r: r, serving: map[string]string{}}
	now := r.get("", clientv3.WithPrefix())
	for _, kv := range now.Kvs {
		m.serving[string(kv.Key)] = string(kv.Value)
	}
	m.changes = r.another().Watch(clientv3.WithRequireLeader(r.ctx), r.prefix,
		clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(now.Header.Revision+1))
	return m
}

// until follows the changes until just these serve.
func (m *master) until(names ...string) {
	for m.names() != strings.Join(names, " ") {
		answer := soon(m.r, fmt.Sprintf("a change from %q to %q", m.names(), names), m.changes)
		check(answer.Err() == nil, "the master's watch ended with %v", answer.Err())
		for _, event := range answer.Events {
			key := string(event.Kv.Key)
			if event.Type == clientv3.EventTypePut {
				m.serving[key] = string(event.Kv.Value)
				m.joined++
				continue
			}
			check(event.PrevKv != nil && string(event.PrevKv.Value) == m.serving[key],
				"%s left with %v", key, event.PrevKv)
			delete(m.serving, key)
			m.left++
		}
	}
}

func (m *master) names() string {
	var names []string
	for key, address := range m.serving {
		name := strings.TrimPrefix(key, m.r.prefix)
		check(address == "10.0.0."+strings.TrimPrefix(name, "worker-"), "%s is at %s", name, address)
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// startWorker runs a worker as a process of its own and waits until it is registered.
func (r *run) startWorker(number int) *exec.Cmd {
	worker := exec.CommandContext(r.ctx, must(os.Executable()), "worker",
		"-endpoints", strings.Join(r.endpoints, ","),
		"-key", r.key(fmt.Sprintf("worker-%d", number)), "-address", fmt.Sprintf("10.0.0.%d", number))
	worker.Stderr = os.Stderr
	output := must(worker.StdoutPipe())
	check(worker.Start() == nil, "worker %d did not start", number)
	r.after(func() {
		worker.Process.Kill()
		worker.Wait()
	})
	line := must(bufio.NewReader(output).ReadString('\n'))
	check(strings.HasPrefix(line, "registered"), "worker %d said %q", number, line)
	return worker
}

func discovery(r *run) {
	early := r.startWorker(1)
	m := newMaster(r)
	m.until("worker-1")
	r.startWorker(2)
	r.startWorker(3)
	m.until("worker-1", "worker-2", "worker-3")

	crashed := time.Now()
	check(early.Process.Kill() == nil, "worker 1 could not be killed")
	m.until("worker-2", "worker-3")
	took := time.Since(crashed)
	check(took < 15*time.Second, "a crash was noticed after %v", took)

	told := r.startWorker(4)
	m.until("worker-2", "worker-3", "worker-4")
	check(told.Process.Signal(syscall.SIGTERM) == nil, "worker 4 could not be told to go")
	m.until("worker-2", "worker-3")
	check(told.Wait() == nil, "worker 4 did not end well")
	r.startWorker(1)
	m.until("worker-1", "worker-2", "worker-3")
	// Nobody left who should not have, however long the others waited.
	equal("joined", m.joined, 4)
	equal("left", m.left, 2)
	equal("registered", r.get("", clientv3.WithPrefix()).Count, 3)
}
