// Command driver is the CSI driver of the local Kubernetes. It makes real volumes without a storage
// system: a volume is a sparse file with an XFS in it, mounted through a loop device, so capacity is
// enforced (a full volume says "no space left on device"), growth is online, and a volume can be on
// one node at a time only, as with a cloud disk.
//
// It runs as plain processes, not as pods. One controller runs beside the control plane; one node
// service runs inside the namespaces of every node and registers itself with that node's kubelet, so
// no registrar is needed. Both see the same directory of volume files:
//
//	<volumes>/<id>.img    the file system, as big as the volume
//	<volumes>/<id>.node   the node that the volume is attached to; absent when it is free
//
// XFS, because growing a mounted ext4 needs CAP_SYS_RESOURCE, which many test machines do not have.
// Deliberately absent: block volumes, several writers, topology, snapshots.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	driverName    = "csi.keelson.dev"
	driverVersion = "1.0.0"
)

func main() {
	role := flag.String("role", "", "controller or node")
	endpoint := flag.String("endpoint", "", "path of the unix socket that serves CSI")
	volumes := flag.String("volumes", "", "directory of the volume files")
	node := flag.String("node", "", "name of this node (role node)")
	registrar := flag.String("registrar", "", "path of the registration socket that kubelet watches (role node)")
	flag.Parse()
	if err := run(*role, *endpoint, *volumes, *node, *registrar); err != nil {
		log.Fatalf("csi driver: %v", err)
	}
}

func run(role, endpoint, volumes, node, registrar string) error {
	if endpoint == "" || !filepath.IsAbs(volumes) {
		return fmt.Errorf("-endpoint and an absolute -volumes are required")
	}
	files := volumeFiles{directory: volumes}
	server := grpc.NewServer(grpc.UnaryInterceptor(logFailures))
	csi.RegisterIdentityServer(server, &identity{})
	switch role {
	case "controller":
		csi.RegisterControllerServer(server, &controller{files: files})
	case "node":
		if node == "" || registrar == "" {
			return fmt.Errorf("role node needs -node and -registrar")
		}
		csi.RegisterNodeServer(server, &nodeService{files: files, name: node})
		go serveRegistration(registrar, endpoint)
	default:
		return fmt.Errorf("-role %q: want controller or node", role)
	}
	listener, err := listen(endpoint)
	if err != nil {
		return err
	}
	return server.Serve(listener)
}

func listen(socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return net.Listen("unix", socket)
}

func logFailures(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	answer, err := next(ctx, request)
	if err != nil {
		log.Printf("%s: %v", info.FullMethod, err)
	}
	return answer, err
}

// serveRegistration answers the kubelet, which finds the socket in its plugins_registry directory.
func serveRegistration(socket, endpoint string) {
	listener, err := listen(socket)
	if err != nil {
		log.Fatalf("registration socket: %v", err)
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrationService{endpoint: endpoint})
	log.Fatalf("registration: %v", server.Serve(listener))
}

type registrationService struct {
	registration.UnsafeRegistrationServer
	endpoint string
}

func (r *registrationService) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              driverName,
		Endpoint:          r.endpoint,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrationService) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		log.Printf("kubelet refused the registration: %s", status.Error)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

type identity struct {
	csi.UnimplementedIdentityServer
}

func (*identity) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: driverName, VendorVersion: driverVersion}, nil
}

func (*identity) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	service := &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
		Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE},
	}}
	expansion := &csi.PluginCapability{Type: &csi.PluginCapability_VolumeExpansion_{
		VolumeExpansion: &csi.PluginCapability_VolumeExpansion{Type: csi.PluginCapability_VolumeExpansion_ONLINE},
	}}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{service, expansion}}, nil
}

func (*identity) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}
