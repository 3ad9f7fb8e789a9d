package store

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// top is an artifact's content directory, with which all names in the tar begin.
const top = "c"

// errUnsafe is wrapped by errors in the archive: it is not what was announced.
var errUnsafe = errors.New("the stream is no artifact")

// Unpack writes the tar stream's content to directory/c, which must not exist, and makes it read-only. limit is for the
// size of all files together.
func Unpack(stream io.Reader, directory string, limit int64) error {
	if err := unpack(stream, directory, map[string]bool{top: true}, limit, time.Time{}); err != nil {
		return err
	}
	path := filepath.Join(directory, top)
	if info, err := os.Lstat(path); err != nil || !info.IsDir() {
		return fmt.Errorf("%w: it has no directory %s", errUnsafe, top)
	}
	return os.Chmod(path, 0o555)
}

// unpack writes the given names of the tar stream into the directory, with everything below them. All but the names
// themselves, which will be moved, becomes read-only. Files get that mtime unless it is zero.
//
// Nothing is written outside: each entry's parent must be a directory of this stream, so no link is followed. The links
// themselves may have any target, which the content's hash covers (python3 in a virtual environment has such a one).
func unpack(stream io.Reader, directory string, names map[string]bool, limit int64, changed time.Time) error {
	archive := tar.NewReader(stream)
	made := map[string]bool{}
	var below []string
	for {
		header, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return readFailure(err)
		}
		name, err := plainName(header.Name, header.Typeflag == tar.TypeDir)
		if err != nil {
			return err
		}
		parent := filepath.Dir(name)
		if parent == "." && !names[name] || parent != "." && !made[parent] {
			return fmt.Errorf("%w: %q was not asked for, or comes before its directory", errUnsafe, header.Name)
		}
		path := filepath.Join(directory, name)
		switch header.Typeflag {
		case tar.TypeDir:
			err = os.Mkdir(path, 0o700)
			made[name] = true
			if parent != "." {
				below = append(below, path)
			}
		case tar.TypeSymlink:
			err = os.Symlink(header.Linkname, path)
		case tar.TypeReg:
			if limit -= header.Size; limit < 0 {
				return fmt.Errorf("%w: it is larger than was said", errUnsafe)
			}
			err = writeFile(archive, path, header.Mode&0o100 != 0)
			if err == nil && !changed.IsZero() {
				err = os.Chtimes(path, changed, changed)
			}
		default:
			return fmt.Errorf("%w: %q is neither a file nor a directory nor a link", errUnsafe, header.Name)
		}
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%w: %q comes twice", errUnsafe, header.Name)
		}
		if err != nil {
			return err
		}
	}
	// In reverse order, since nothing below a read-only directory can be changed.
	for i := len(below) - 1; i >= 0; i-- {
		if err := os.Chmod(below[i], 0o555); err != nil {
			return err
		}
	}
	return nil
}

// plainName returns an entry's name without a directory's slash, if it has no .. and is relative.
func plainName(said string, directory bool) (string, error) {
	name := said
	if directory {
		name = strings.TrimSuffix(name, "/")
	}
	for _, part := range strings.Split(name, "/") {
		if part == "" || part == "." || part == ".." || strings.IndexByte(part, 0) >= 0 {
			return "", fmt.Errorf("%w: %q is not a plain path", errUnsafe, said)
		}
	}
	return name, nil
}

func writeFile(content io.Reader, path string, executable bool) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	buffer := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buffer)
	for {
		size, err := content.Read(buffer[:])
		if size > 0 {
			if _, err := file.Write(buffer[:size]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return readFailure(err)
		}
	}
	mode := os.FileMode(0o444)
	if executable {
		mode = 0o555
	}
	if err := file.Chmod(mode); err != nil {
		return err
	}
	// Some file systems report only here that the disk is full.
	return file.Close()
}

func readFailure(err error) error {
	return fmt.Errorf("%w: %v", errUnsafe, err)
}
