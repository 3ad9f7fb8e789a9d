//go:build !linux

package process

import "syscall"

type sockets struct{}

// BecomeSubreaper does nothing: here orphans are always init's.
func BecomeSubreaper() {}

func systemAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// leftOf returns what is left of a run whose process has ended.
func (k *Keeper) leftOf(run *Process) []int { return groupAlone(run.PID) }

func (k *Keeper) leftOfNone() []int { return nil }

// RunOfSocket returns the run of the process with that socket; unknown on this system.
func (k *Keeper) RunOfSocket(uint64) string { return "" }

// Marked finds processes by marker; this system does not show environments.
func Marked(string) []int { return nil }

// Children finds none: here orphans are always init's.
func Children() []int { return nil }

// Members finds the processes of a session or group; a negative number is the group itself.
func Members(group int) []int { return groupAlone(group) }

// Sampler finds again and again what runs use.
type Sampler struct{ keeper *Keeper }

// NewSampler is one of this keeper's runs.
func (k *Keeper) NewSampler() *Sampler { return &Sampler{k} }

// Uses stores in `into`, in place of its content, what each run's group uses according to ps (PSCommand).
func (s *Sampler) Uses(into map[string]Use, ps func() string) {
	clear(into)
	groups := usesIn(ps())
	k := s.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, run := range k.runs {
		if use, shown := groups[run.PID]; shown {
			into[run.id()] = use
		}
	}
}
