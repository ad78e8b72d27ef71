package main

import (
	"context"
	"os"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// nodeService mounts volumes on one node. It runs in that node's mount namespace, so its mounts and
// loop devices go when the node is powered off.
type nodeService struct {
	csi.UnimplementedNodeServer
	files volumeFiles
	name  string
	turn  sync.Mutex
}

func (n *nodeService) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: n.name}, nil
}

func (n *nodeService) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	var capabilities []*csi.NodeServiceCapability
	for _, kind := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		capabilities = append(capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: kind}},
		})
	}
	return &csi.NodeGetCapabilitiesResponse{Capabilities: capabilities}, nil
}

// NodeStageVolume mounts the file system once per node. "loop" makes the device go with the mount.
func (n *nodeService) NodeStageVolume(_ context.Context, request *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if _, err := n.files.size(request.GetVolumeId()); err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %s: %v", request.GetVolumeId(), err)
	}
	source := n.files.image(request.GetVolumeId())
	if err := n.mount(request.GetStagingTargetPath(), "-t", "xfs", "-o", "loop,noatime,nouuid", source); err != nil {
		return nil, status.Errorf(codes.Internal, "%v", err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

func (n *nodeService) NodeUnstageVolume(_ context.Context, request *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if err := n.unmount(request.GetStagingTargetPath()); err != nil {
		return nil, status.Errorf(codes.Internal, "%v", err)
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume shows the staged file system to one pod.
func (n *nodeService) NodePublishVolume(_ context.Context, request *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	options := "bind"
	if request.GetReadonly() {
		options = "bind,ro"
	}
	if err := n.mount(request.GetTargetPath(), "-o", options, request.GetStagingTargetPath()); err != nil {
		return nil, status.Errorf(codes.Internal, "%v", err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (n *nodeService) NodeUnpublishVolume(_ context.Context, request *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := n.unmount(request.GetTargetPath()); err != nil {
		return nil, status.Errorf(codes.Internal, "%v", err)
	}
	if err := os.Remove(request.GetTargetPath()); err != nil && !os.IsNotExist(err) {
		return nil, status.Errorf(codes.Internal, "%v", err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// NodeExpandVolume grows the mounted file system to what the controller has made of the file.
func (n *nodeService) NodeExpandVolume(_ context.Context, request *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	n.turn.Lock()
	defer n.turn.Unlock()
	size, err := n.files.size(request.GetVolumeId())
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %s: %v", request.GetVolumeId(), err)
	}
	device, err := mountSource(request.GetVolumePath())
	if err == nil && device == "" {
		return nil, status.Errorf(codes.NotFound, "nothing is mounted at %s", request.GetVolumePath())
	}
	if err == nil {
		err = command("losetup", "-c", device)
	}
	if err == nil {
		err = command("xfs_growfs", request.GetVolumePath())
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "%v", err)
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: size}, nil
}

func (n *nodeService) NodeGetVolumeStats(_ context.Context, request *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(request.GetVolumePath(), &disk); err != nil {
		return nil, status.Errorf(codes.NotFound, "%s: %v", request.GetVolumePath(), err)
	}
	block := int64(disk.Bsize)
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{
			Unit:      csi.VolumeUsage_BYTES,
			Total:     int64(disk.Blocks) * block,
			Used:      int64(disk.Blocks-disk.Bfree) * block,
			Available: int64(disk.Bavail) * block,
		},
		{
			Unit:      csi.VolumeUsage_INODES,
			Total:     int64(disk.Files),
			Used:      int64(disk.Files - disk.Ffree),
			Available: int64(disk.Ffree),
		},
	}}, nil
}

// mount makes the target and mounts on it unless something is mounted there already.
func (n *nodeService) mount(target string, arguments ...string) error {
	n.turn.Lock()
	defer n.turn.Unlock()
	if err := os.MkdirAll(target, 0o750); err != nil {
		return err
	}
	present, err := mountSource(target)
	if err != nil || present != "" {
		return err
	}
	return command("mount", append(arguments, target)...)
}

func (n *nodeService) unmount(target string) error {
	n.turn.Lock()
	defer n.turn.Unlock()
	present, err := mountSource(target)
	if err != nil || present == "" {
		return err
	}
	return command("umount", target)
}
