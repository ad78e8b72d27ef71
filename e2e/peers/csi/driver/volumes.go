package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// minimumBytes is what mkfs.xfs asks for at least. The files are sparse, so it costs no space.
const minimumBytes = 300 << 20

// An id becomes a file name, so anything that could leave the directory is refused.
var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,120}$`)

var errAttachedElsewhere = errors.New("the volume is attached to another node")

// volumeFiles is the directory that the controller and all nodes share.
type volumeFiles struct{ directory string }

func (v volumeFiles) image(id string) string { return filepath.Join(v.directory, id+".img") }

func (v volumeFiles) attachment(id string) string { return filepath.Join(v.directory, id+".node") }

// size answers the bytes of a volume, and os.ErrNotExist when there is none of that id.
func (v volumeFiles) size(id string) (int64, error) {
	if !validID.MatchString(id) {
		return 0, os.ErrNotExist
	}
	info, err := os.Stat(v.image(id))
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// create formats under another name and renames, so that a volume is whole or absent.
func (v volumeFiles) create(id string, bytes int64) error {
	unfinished := v.image(id) + ".tmp"
	if err := os.MkdirAll(v.directory, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(unfinished, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(unfinished, bytes); err != nil {
		return err
	}
	if err := command("mkfs.xfs", "-q", "-f", unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, v.image(id))
}

func (v volumeFiles) remove(id string) error {
	if _, err := os.Stat(v.attachment(id)); err == nil {
		return fmt.Errorf("volume %s is still attached", id)
	}
	if err := os.Remove(v.image(id)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// attach records the node, and refuses when another one holds the volume: an XFS mounted twice would
// be destroyed. Exclusive creation makes the check and the record one step.
func (v volumeFiles) attach(id, node string) error {
	file, err := os.OpenFile(v.attachment(id), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if os.IsExist(err) {
		holder, readErr := os.ReadFile(v.attachment(id))
		if readErr != nil {
			return readErr
		}
		if string(holder) == node {
			return nil
		}
		return fmt.Errorf("%w (%s)", errAttachedElsewhere, holder)
	}
	if err != nil {
		return err
	}
	if _, err := file.WriteString(node); err != nil {
		return errors.Join(err, file.Close())
	}
	return file.Close()
}

// detach forgets the attachment if it is this node's, or anybody's when node is empty.
func (v volumeFiles) detach(id, node string) error {
	holder, err := os.ReadFile(v.attachment(id))
	if os.IsNotExist(err) || (err == nil && node != "" && string(holder) != node) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(v.attachment(id))
}

// mountSource answers what is mounted exactly at the path, or "" when nothing is.
func mountSource(path string) (string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	source := ""
	for line := range strings.Lines(string(table)) {
		mount, device, found := strings.Cut(line, " - ")
		fields, origin := strings.Fields(mount), strings.Fields(device)
		if found && len(fields) > 4 && len(origin) > 1 && fields[4] == path {
			source = origin[1]
		}
	}
	return source, nil
}

func command(name string, arguments ...string) error {
	output, err := exec.Command(name, arguments...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, strings.TrimSpace(string(output)))
	}
	return nil
}
