// Command descriptors writes the protobuf descriptors that Go etcd is built with, as one serialized
// google.protobuf.FileDescriptorSet on standard output. The wire test of e2e reads it and compares
// every message, field, enum, service and method with ours, so that a difference in the wire format
// is found by a program and not by a client.
package main

import (
	"fmt"
	"os"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/versionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	roots := []protoreflect.FileDescriptor{
		authpb.File_auth_proto,
		etcdserverpb.File_etcdserver_proto,
		etcdserverpb.File_raft_internal_proto,
		etcdserverpb.File_rpc_proto,
		membershippb.File_membership_proto,
		mvccpb.File_kv_proto,
		versionpb.File_version_proto,
		v3electionpb.File_v3election_proto,
		v3lockpb.File_v3lock_proto,
		healthpb.File_grpc_health_v1_health_proto,
	}
	set := &descriptorpb.FileDescriptorSet{}
	for _, root := range roots {
		set.File = append(set.File, protodesc.ToFileDescriptorProto(root))
	}
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err == nil {
		_, err = os.Stdout.Write(out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "descriptors:", err)
		os.Exit(1)
	}
}
