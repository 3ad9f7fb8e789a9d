package run

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/nix"
	"remote-runner/agent/internal/process"
	"remote-runner/agent/internal/wire"
)

// find looks up the program, and reports what is wrong with it as far as can be seen before starting it.
func (s *Service) find(ctx context.Context, directory base.Run, r request) (Program, error) {
	path := r.argv[0]
	var place *nix.Place
	switch {
	case r.Artifact != "" && (r.Store == nix.HostStore || r.Store == nix.UserStore):
		var err error
		if place, err = s.Nix.Place(ctx, r.Store, r.Artifact, path, directory); err != nil {
			return Program{}, err
		}
		path = place.Program
	case r.Artifact != "" && r.Store != "cache" && r.Store != "":
		return Program{}, wire.Fail("breach", "run: there is no store %q", r.Store)
	case r.Artifact != "":
		if !base.IsName(r.Artifact) {
			return Program{}, wire.Fail("breach", "run: %q is no artifact", r.Artifact)
		}
		if !s.Artifact(r.Artifact) {
			return Program{}, wire.Fail("missing", "the artifact %s is not there, or was changed", r.Artifact).
				With("artifact", r.Artifact)
		}
		path = filepath.Join(s.Base.Content(r.Artifact), path)
	case !strings.Contains(path, "/"):
		path = search(path, s.Environ)
	}
	file := place.See(path)
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return Program{}, unusable(path, "nothing")
	case info.IsDir():
		return Program{}, unusable(path, "directory")
	case syscall.Access(file, 1) != nil: // X_OK
		return Program{}, unusable(path, "not-executable")
	}
	return Program{path, append([]string{path}, r.argv[1:]...), place}, nil
}

// search looks for a name on the login's PATH; it returns the name itself if it is not found.
func search(name string, environ []string) string {
	places, _ := lookup(environ, "PATH")
	for _, place := range filepath.SplitList(places) {
		path := filepath.Join(place, name)
		if !filepath.IsAbs(path) {
			continue
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && syscall.Access(path, 1) == nil {
			return path
		}
	}
	return name
}

func unusable(path, problem string) error {
	return wire.Fail("program", "%s: %s", path, problem).With("program", path).With("problem", problem)
}

// Start starts a program outside of any store; if it cannot, it returns the same problems as for a run.
func Start(keeper *process.Keeper, spec process.Spec) (*process.Process, error) {
	program := Program{Path: spec.Path, Argv: spec.Argv}
	started, err := startProgram(keeper, program, spec)
	if err != nil {
		return nil, explain(err, program)
	}
	return started, nil
}

// startProgram starts it. As in a shell, a text file that the kernel does not execute is a script for sh.
func startProgram(keeper *process.Keeper, program Program, spec process.Spec) (*process.Process, error) {
	spec.Path, spec.Argv = program.Path, program.Argv
	program.place.Enter(&spec)
	started, err := keeper.Start(spec)
	if errors.Is(err, syscall.ENOEXEC) && isText(program.Path) {
		spec.Path = "/bin/sh"
		spec.Argv = append([]string{"/bin/sh"}, program.Argv...)
		return keeper.Start(spec)
	}
	return started, err
}

func isText(path string) bool {
	head, err := headOf(path, 256)
	return err == nil && bytes.IndexByte(head, 0) < 0 && formatOf(head) == ""
}

func headOf(path string, size int) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	head := make([]byte, size)
	n, err := io.ReadFull(file, head)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return head[:n], err
}

// formatOf returns the format of another system's program: elf-b700 (machine, bytes 18 and 19), mach-o; else "".
func formatOf(head []byte) string {
	if len(head) < 20 {
		return ""
	}
	switch hex.EncodeToString(head[:4]) {
	case "7f454c46":
		return "elf-" + hex.EncodeToString(head[18:20])
	case "cffaedfe", "cefaedfe", "cafebabe":
		return "mach-o"
	}
	return ""
}

// explain returns why a program did not start.
func explain(err error, program Program) error {
	if told := (*wire.Failure)(nil); errors.As(err, &told) {
		return err
	}
	problem := program.place.NotStarted(err)
	switch {
	case problem != "":
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE),
		errors.Is(err, syscall.ENFILE):
		return wire.Fail("processes", "no process can be started: %v", err)
	default:
		problem = problemOf(err, program)
	}
	if problem == "" {
		return wire.Fail("failed", "%s cannot be started: %v", program.Path, err)
	}
	return unusable(program.Path, problem)
}

// problemOf returns what is wrong with a program that exec refused; "" if it is not the program (too many arguments).
func problemOf(err error, program Program) string {
	file := program.place.See(program.Path)
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		if head, err := headOf(file, 20); err == nil && formatOf(head) != "" {
			return "format:" + formatOf(head)
		}
		return "format:unknown"
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EACCES):
		if _, gone := os.Stat(file); gone != nil {
			return "nothing"
		}
		interpreter := interpreterOf(file)
		if interpreter != "" && syscall.Access(program.place.See(interpreter), 1) != nil {
			return "interpreter:" + interpreter
		}
		if errors.Is(err, syscall.EACCES) {
			return "not-executable" // mounted noexec, or the system's policy
		}
	}
	return ""
}

// interpreterOf returns the interpreter that a script or an ELF file names; "" for none.
func interpreterOf(path string) string {
	head, err := headOf(path, 256)
	if err != nil {
		return ""
	}
	if rest, is := bytes.CutPrefix(head, []byte("#!")); is {
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		words := strings.FieldsFunc(string(line), func(c rune) bool { return c == ' ' || c == '\t' })
		if len(words) == 0 {
			return ""
		}
		return words[0]
	}
	file, err := elf.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP && part.Filesz < 4096 {
			name := make([]byte, part.Filesz)
			if _, err := part.ReadAt(name, 0); err == nil {
				return string(bytes.TrimRight(name, "\x00"))
			}
		}
	}
	return ""
}
