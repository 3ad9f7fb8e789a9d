// Package store keeps artifacts: each in a directory under the hash of its content, read-only, verified there, and
// the longest unused removed when all of them exceed a limit.
//
// The layout, which the supervisor before this agent had as well:
//
//	artifacts/HASH/c      the content
//	artifacts/HASH/used   changed at each use
//	artifacts/HASH/kib    what it takes on the disk
//	artifacts/HASH/seen   what the content looked like when its hash was computed
//	artifacts/.tmp-*      what is being brought or removed
package store

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// Content is what a directory holds.
type Content struct {
	Hash  string // 32 hex digits
	Size  int64  // of all files
	Disk  int64  // bytes that it takes on the disk
	Files int
	Seen  string // changes with the name, size, mode or times of anything in it
}

// ReadContent computes the hash of what is below root, as hash_content in content.py does.
func ReadContent(root string) (Content, error) {
	return walkContent(root, sha256.New())
}

// LookAtContent is as ReadContent, without reading a file, and so without a hash.
func LookAtContent(root string) (Content, error) {
	return walkContent(root, nil)
}

func walkContent(root string, digest hash.Hash) (Content, error) {
	var found Content
	seen := sha256.New()
	// WalkDir goes through each directory in the order of its names' bytes.
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		found.Disk += diskSize(info)
		name := ""
		if path != root {
			name = path[len(root)+1:]
		}
		fmt.Fprintf(seen, "%d %o %d %d %d %s\x00",
			len(name), info.Mode(), info.Size(), info.ModTime().UnixNano(), changeTime(stat), name)
		if path == root {
			return nil
		}
		kind, executable, size, target := "f", 0, int64(0), ""
		switch mode := info.Mode(); {
		case mode.IsRegular():
			size = info.Size()
			executable = int(mode.Perm() >> 6 & 1)
			found.Files++
			found.Size += size
		case mode.IsDir():
			kind = "d"
		case mode&fs.ModeSymlink != 0:
			kind = "l"
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s: is neither a file nor a folder nor a link", path)
		}
		if digest == nil {
			return nil
		}
		// Every part with its length, so that no two contents read the same.
		fmt.Fprintf(digest, "%s%d %d %d %d %s%s", kind, executable, len(name), len(target), size, name, target)
		if kind == "f" {
			return readFile(digest, path, size)
		}
		return nil
	})
	if digest != nil {
		found.Hash = hex.EncodeToString(digest.Sum(nil))[:32]
	}
	found.Seen = hex.EncodeToString(seen.Sum(nil))[:32]
	return found, err
}

func readFile(digest io.Writer, path string, size int64) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	buffer := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buffer)
	read, err := io.CopyBuffer(digest, io.LimitReader(file, size+1), buffer[:])
	if err == nil && read != size {
		err = fmt.Errorf("%s: changed while it was read", path)
	}
	return err
}
