package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

func namingEndpoints(r *run) {
	service := strings.TrimSuffix(r.prefix, "/")
	manager := must(endpoints.NewManager(r.client, service))
	updates := must(manager.NewWatchChannel(r.ctx))
	one := endpoints.Endpoint{Addr: "10.0.0.1:1", Metadata: "first"}
	check(manager.AddEndpoint(r.ctx, r.key("one"), one) == nil, "adding failed")
	got := soon(r, "the addition", updates)
	check(len(got) == 1 && got[0].Op == endpoints.Add && got[0].Key == r.key("one"), "the update is %v", got)
	equal("the address", got[0].Endpoint.Addr, "10.0.0.1:1")
	equal("its metadata", fmt.Sprint(got[0].Endpoint.Metadata), "first")

	lease := must(r.client.Grant(r.ctx, 60))
	check(manager.Update(r.ctx, []*endpoints.UpdateWithOpts{
		endpoints.NewAddUpdateOpts(r.key("two"), endpoints.Endpoint{Addr: "10.0.0.2:1"}, clientv3.WithLease(lease.ID)),
		endpoints.NewDeleteUpdateOpts(r.key("one")),
	}) == nil, "updating failed")
	soon(r, "the updates", updates)
	// A list is a serializable read, of whichever member the client asks next.
	listedSoon(r, manager, "[10.0.0.2:1]")
	must(r.client.Revoke(r.ctx, lease.ID))
	got = soon(r, "the removal", updates)
	check(got[0].Op == endpoints.Delete && got[0].Key == r.key("two"), "the update is %v", got[0])
	listedSoon(r, manager, "[]")
}

// listedSoon lists until these addresses are there, and no others.
func listedSoon(r *run, manager endpoints.Manager, addresses string) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		listed := []string{}
		for _, endpoint := range must(manager.List(r.ctx)) {
			listed = append(listed, endpoint.Addr)
		}
		if fmt.Sprint(listed) == addresses {
			return
		}
		check(time.Now().Before(deadline), "listed are %v, not %v", listed, addresses)
		time.Sleep(20 * time.Millisecond)
	}
}

// service is a real gRPC server that tells its name with every answer.
func (r *run) service(name string) string {
	listener := must(net.Listen("tcp", "127.0.0.1:0"))
	tell := func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := grpc.SetHeader(ctx, metadata.Pairs("name", name)); err != nil {
			return nil, err
		}
		return next(ctx, request)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(tell))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	r.after(server.Stop)
	return listener.Addr().String()
}

// Calls to a name in etcd reach whoever is registered there, and nobody else.
func namingResolver(r *run) {
	name := strings.TrimPrefix(strings.TrimSuffix(r.prefix, "/"), "/")
	manager := must(endpoints.NewManager(r.client, name))
	for _, each := range []string{"one", "two"} {
		address := endpoints.Endpoint{Addr: r.service(each)}
		check(manager.AddEndpoint(r.ctx, name+"/"+each, address) == nil, "adding failed")
	}
	connection := must(grpc.NewClient("etcd:///"+name,
		grpc.WithResolvers(must(resolver.NewBuilder(r.client))),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer connection.Close()
	services := grpc_health_v1.NewHealthClient(connection)
	// Who answers twenty calls.
	answering := func() string {
		var names []string
		for range 20 {
			var header metadata.MD
			must(services.Check(r.ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Header(&header)))
			names = append(names, header.Get("name")...)
		}
		slices.Sort(names)
		return strings.Join(slices.Compact(names), " ")
	}
	r.eventually("answers of both", func() bool { return answering() == "one two" })
	check(manager.DeleteEndpoint(r.ctx, name+"/one") == nil, "removing failed")
	r.eventually("answers of the second only", func() bool { return answering() == "two" })
	three := endpoints.Endpoint{Addr: r.service("three")}
	check(manager.AddEndpoint(r.ctx, name+"/three", three) == nil, "adding failed")
	r.eventually("answers of the second and the third", func() bool { return answering() == "three two" })
}
