package store

import (
	"strings"
	"syscall"
	"testing"

	"remote-runner/agent/internal/base"
)

func TestFullOrReadOnlyDisk(t *testing.T) {
	small := directory(t)
	if err := syscall.Mount("none", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("needs root, to mount a small disk: ", err)
	}
	t.Cleanup(func() { syscall.Unmount(small, syscall.MNT_DETACH) })
	service := &Service{Base: base.Directory(small), Used: func() (map[string]bool, error) { return nil, nil }}
	client := client(t, service)
	large := tarOf(t, entry{"c/", '5', "", 0o755}, entry{"c/x", '0', strings.Repeat("x", 1<<20), 0o644})
	if _, _, failure := push(t, client, golden, 1<<20, 1<<30, large); failure["error"] != "room" || failure["path"] == nil {
		t.Errorf("failed by %v", failure)
	}
	onlyArtifacts(t, service)
	if err := syscall.Mount("none", small, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, failure := push(t, client, golden, 1<<20, 1<<30, large); failure["error"] != "readonly" {
		t.Errorf("failed by %v", failure)
	}
}
