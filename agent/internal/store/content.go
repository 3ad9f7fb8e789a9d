// Package store keeps artifacts: each in a directory named after its content's hash, verified and read-only. When all
// together exceed a limit, the least recently used are removed.
//
// The layout is the same as in the older supervisor:
//
//	artifacts/HASH/c      the content
//	artifacts/HASH/used   touched at each use
//	artifacts/HASH/kib    its size on disk
//	artifacts/HASH/seen   the content's metadata when its hash was computed
//	artifacts/.tmp-*      what is being pushed or removed
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

// Content describes what is in a directory.
type Content struct {
	Hash  string // 32 hex digits
	Size  int64  // of all files
	Disk  int64  // bytes on disk
	Files int
	Seen  string // changes with any name, size, mode or time in it
}

// ReadContent computes the hash of everything below root, as hash_content in content.py does.
func ReadContent(root string) (Content, error) {
	return walkContent(root, sha256.New())
}

// LookAtContent is like ReadContent, but reads no file and computes no hash.
func LookAtContent(root string) (Content, error) {
	return walkContent(root, nil)
}

func walkContent(root string, digest hash.Hash) (Content, error) {
	var found Content
	seen := sha256.New()
	// WalkDir visits each directory in the byte order of its names.
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
		// Each part is preceded by its length, so that different contents never hash the same bytes.
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
