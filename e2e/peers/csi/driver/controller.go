package main

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// controller makes, removes, attaches and grows volumes. All its calls are idempotent, as CSI asks.
type controller struct {
	csi.UnimplementedControllerServer
	files volumeFiles
	// One call at a time: they are quick, and check-then-act on files needs no finer lock.
	turn sync.Mutex
}

func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	var capabilities []*csi.ControllerServiceCapability
	for _, kind := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
		csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		capabilities = append(capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: kind}},
		})
	}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: capabilities}, nil
}

func (c *controller) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	id := request.GetName()
	if !validID.MatchString(id) {
		return nil, status.Errorf(codes.InvalidArgument, "volume name %q cannot be a file name", id)
	}
	if request.GetVolumeContentSource() != nil {
		return nil, status.Error(codes.InvalidArgument, "volumes from snapshots or other volumes are not supported")
	}
	if reason := unsupported(request.GetVolumeCapabilities()); reason != "" {
		return nil, status.Error(codes.InvalidArgument, reason)
	}
	wanted := max(request.GetCapacityRange().GetRequiredBytes(), minimumBytes)
	if limit := request.GetCapacityRange().GetLimitBytes(); limit > 0 && wanted > limit {
		return nil, status.Errorf(codes.OutOfRange, "a volume has at least %d bytes, the limit is %d", wanted, limit)
	}
	size, err := c.files.size(id)
	if err == nil && size != wanted {
		return nil, status.Errorf(codes.AlreadyExists, "volume %s exists with %d bytes, not %d", id, size, wanted)
	}
	if os.IsNotExist(err) {
		err = c.files.create(id, wanted)
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "create volume %s: %v", id, err)
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: id, CapacityBytes: wanted}}, nil
}

func (c *controller) DeleteVolume(_ context.Context, request *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	if !validID.MatchString(request.GetVolumeId()) {
		return &csi.DeleteVolumeResponse{}, nil // Such a volume cannot exist, so it is gone.
	}
	if err := c.files.remove(request.GetVolumeId()); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "%v", err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (c *controller) ControllerPublishVolume(_ context.Context, request *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	if _, err := c.files.size(request.GetVolumeId()); err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %s: %v", request.GetVolumeId(), err)
	}
	err := c.files.attach(request.GetVolumeId(), request.GetNodeId())
	if errors.Is(err, errAttachedElsewhere) {
		return nil, status.Errorf(codes.FailedPrecondition, "%v", err)
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "%v", err)
	}
	return &csi.ControllerPublishVolumeResponse{}, nil
}

func (c *controller) ControllerUnpublishVolume(_ context.Context, request *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	if !validID.MatchString(request.GetVolumeId()) {
		return &csi.ControllerUnpublishVolumeResponse{}, nil
	}
	if err := c.files.detach(request.GetVolumeId(), request.GetNodeId()); err != nil {
		return nil, status.Errorf(codes.Internal, "%v", err)
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

func (c *controller) ControllerExpandVolume(_ context.Context, request *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	c.turn.Lock()
	defer c.turn.Unlock()
	id, wanted := request.GetVolumeId(), request.GetCapacityRange().GetRequiredBytes()
	size, err := c.files.size(id)
	if err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %s: %v", id, err)
	}
	// Never smaller: a volume whose end is cut off has lost data.
	if wanted > size {
		if err := os.Truncate(c.files.image(id), wanted); err != nil {
			return nil, status.Errorf(codes.Internal, "%v", err)
		}
		size = wanted
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, nil
}

func (c *controller) ValidateVolumeCapabilities(_ context.Context, request *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if _, err := c.files.size(request.GetVolumeId()); err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %s: %v", request.GetVolumeId(), err)
	}
	if reason := unsupported(request.GetVolumeCapabilities()); reason != "" {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: reason}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{
		Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: request.GetVolumeCapabilities()},
	}, nil
}

// unsupported answers why a volume cannot be used like that, or "".
func unsupported(capabilities []*csi.VolumeCapability) string {
	for _, capability := range capabilities {
		if capability.GetBlock() != nil {
			return "block volumes are not supported"
		}
		switch capability.GetAccessMode().GetMode() {
		case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
			csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
			csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		default:
			return "a volume can be used on one node at a time only"
		}
	}
	return ""
}
