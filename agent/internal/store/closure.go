package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"remote-runner/agent/internal/base"
	"remote-runner/agent/internal/wire"
)

// The limit for a closure's names; 100,000 paths need less.
const longestList = 16 << 20

// Closure is the verb `closure`: it adds the missing paths of a closure to the user's own store.
//
// Before anything is sent, it tests whether programs here can be shown that store.
func (s *Service) Closure(ctx context.Context, stream *wire.Stream, open wire.Message) error {
	var request struct {
		Out           string
		Length, Limit int64
	}
	if err := open.Decode(&request); err != nil {
		return err
	}
	if !storeName.MatchString(request.Out) || request.Length < 0 || request.Length > longestList {
		return wire.Fail("breach", "no closure can be asked for by %s", open.Head)
	}
	own := UserStoreIn(s.Base)
	have := func() bool { return own.How() != "" && own.Use(request.Out) }
	if have() {
		return stream.Send(map[string]any{"have": s.Base})
	}
	if err := own.make(); err != nil {
		return noRoom(err)
	}
	unlock, err := turn(ctx, filepath.Join(string(own), ".lock-"+request.Out))
	if err != nil {
		return err
	}
	defer unlock()
	if have() {
		return stream.Send(map[string]any{"have": s.Base})
	}
	if own.How() == "" {
		how, err := s.Prove(ctx, own)
		if err == nil {
			err = base.WriteFile(own.howFile(), []byte(how+"\n"), 0o600)
		} else if ctx.Err() == nil {
			return wire.Fail("namespace", "%v", err)
		}
		if err != nil {
			return noRoom(err)
		}
	}
	sent, err := own.take(ctx, stream, request.Out, request.Length)
	if err != nil {
		return err
	}
	if err := stream.Send(map[string]any{"done": s.Base}); err != nil {
		return err
	}
	if sent {
		own.makeRoom(request.Out, request.Limit, s.Used)
	}
	removeAbandoned(string(own), own.closure(""))
	return nil
}

// take requests and receives what is missing; sent reports whether that was anything.
func (s UserStore) take(ctx context.Context, stream *wire.Stream, out string, length int64) (sent bool, err error) {
	lane := stream.Reader(0)
	list := make([]byte, length)
	if _, err := io.ReadFull(lane, list); err != nil {
		return false, wire.Fail("failed", "the list of the paths ended early")
	}
	listed := strings.Fields(string(list))
	for _, name := range listed {
		if !storeName.MatchString(name) {
			return false, wire.Fail("breach", "%q is no name of a store path", name)
		}
	}
	// From here on no cleaner removes what this list names.
	pending, err := os.CreateTemp(s.closure(""), Aside)
	if err != nil {
		return false, noRoom(err)
	}
	defer os.Remove(pending.Name())
	_, err = pending.Write(list)
	if closed := pending.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return false, noRoom(err)
	}
	missing := map[string]bool{}
	numbers := []int{}
	for number, name := range listed {
		if _, err := os.Lstat(s.path(name)); err != nil {
			missing[name] = true
			numbers = append(numbers, number)
		}
	}
	if len(missing) > 0 {
		if err := stream.Send(map[string]any{"missing": numbers}); err != nil {
			return false, err
		}
		stream.Grant(0, bulkCredit)
		if err := s.bring(lane, missing); err != nil {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			if errors.Is(err, errUnsafe) {
				return false, wire.Fail("failed", "%v", err)
			}
			return false, noRoom(err)
		}
	}
	if err := os.Rename(pending.Name(), s.closure(out)); err != nil {
		return false, noRoom(err)
	}
	return len(missing) > 0, nil
}

// storeTime is the mtime of all files in a Nix store.
var storeTime = time.Unix(1, 0)

// bring unpacks the tar stream's store paths aside, and moves them into place once all missing ones are complete.
func (s UserStore) bring(stream io.Reader, missing map[string]bool) error {
	place, err := os.MkdirTemp(string(s), Aside)
	if err != nil {
		return err
	}
	defer base.Remove(place)
	if err := unpack(stream, place, missing, math.MaxInt64, storeTime); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return readFailure(err)
	}
	for name := range missing {
		if _, err := os.Lstat(filepath.Join(place, name)); err != nil {
			return fmt.Errorf("%w: %s did not come", errUnsafe, name)
		}
	}
	for name := range missing {
		// What somebody else pushed meanwhile stays.
		if failed := move(filepath.Join(place, name), s.path(name)); failed != nil {
			if _, err := os.Lstat(s.path(name)); err != nil {
				return failed
			}
		}
	}
	return nil
}
