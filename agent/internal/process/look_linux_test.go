package process

import (
	"os"
	"slices"
	"testing"
)

func TestANumberGivenAnewIsNoStrangerAnyMore(t *testing.T) {
	s := strangers{}
	s.leaveOut([]int{7, 50}, 40)
	s.learn([]seen{{pid: 7}, {pid: 50}}) // 50 is from before the numbers began from 1 again
	if left := s.leaveOut([]int{7, 50}, 45); !slices.Equal(left, []int{50}) {
		t.Errorf("%v", left)
	}
	s.learn([]seen{{pid: 50}})
	// The old one ended, and a run's process got its number.
	s.leaveOut([]int{7, 50}, 60)
	s.learn([]seen{{pid: 50, parent: os.Getpid()}})
	if left := s.leaveOut([]int{7, 50}, 60); !slices.Equal(left, []int{50}) {
		t.Errorf("%v", left)
	}
}
