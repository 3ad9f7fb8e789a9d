// Package base knows the layout of our directory on a host, and the records of runs in it.
//
//	runs/ID/{outputs,tmp,record}   one run
//	artifacts/HASH/c/…             an artifact, complete once it exists
//	artifacts/HASH/used            its mtime is the time of the last use
//	agents/                        programs and sockets
package base

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
)

// Directory is the path of our directory, absolute and without links.
type Directory string

// Runs is where the runs' directories are.
func (d Directory) Runs() string { return filepath.Join(string(d), "runs") }

// Run is the directory of the run with that id.
func (d Directory) Run(id string) Run { return Run(filepath.Join(d.Runs(), id)) }

// Artifacts is where the artifacts are.
func (d Directory) Artifacts() string { return filepath.Join(string(d), "artifacts") }

// Artifact is the directory that holds an artifact's files in c/ and the file used.
func (d Directory) Artifact(hash string) string { return filepath.Join(d.Artifacts(), hash) }

// Content is the directory with the files of an artifact.
func (d Directory) Content(hash string) string { return filepath.Join(d.Artifact(hash), "c") }

// Agents is where the agents' programs and sockets are.
func (d Directory) Agents() string { return filepath.Join(string(d), "agents") }

// Run is the directory of one run.
type Run string

// Outputs is what TEST_OUTPUTS_PATH says.
func (r Run) Outputs() string { return filepath.Join(string(r), "outputs") }

// Temp is what TEST_TEMP_PATH says, and where the application starts.
func (r Run) Temp() string { return filepath.Join(string(r), "tmp") }

// Record is the path of the run's record.
func (r Run) Record() string { return filepath.Join(string(r), "record") }

var id = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$`)

// IsName reports whether a run or an artifact may have this name; such a name is safe as a file name.
func IsName(name string) bool { return id.MatchString(name) }

// ReadFile reads at most `most` bytes of a small file of ours. An application may have put anything in its place, so it
// follows no link and does not block on a pipe.
func ReadFile(path string, most int64) ([]byte, error) {
	file, err := openPlain(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, most))
}

// IsNothing tells whether the error of reading says that nothing is there.
func IsNothing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// Why is what the system says of an error, without the path.
func Why(err error) string {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}

// openPlain opens a file if it is a regular one.
func openPlain(path string, flags int) (*os.File, error) {
	file, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: errors.New("is no file")}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// WriteFile writes a file atomically: readers see the old content or the new.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Chmod(mode)
	}
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
	}
	return err
}

// Remove removes a directory with everything in it, including directories that are not writable.
func Remove(path string) error {
	if os.RemoveAll(path) == nil {
		return nil
	}
	// Errors are ignored here: the second RemoveAll reports them.
	_ = filepath.WalkDir(path, func(found string, entry fs.DirEntry, _ error) error {
		if entry != nil && entry.IsDir() {
			_ = os.Chmod(found, 0o700) // before its content is read
		}
		return nil
	})
	return os.RemoveAll(path)
}
