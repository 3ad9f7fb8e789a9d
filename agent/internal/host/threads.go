package host

import (
	"runtime"
	"sync"
)

const spareThreads = 8

// keepThreads makes threads that the scheduler keeps from then on. Where an application takes all processes that the
// host has left, none can be made any more, and Go ends a program that needs one while others wait for a disk.
func keepThreads(count int) {
	var made, ended sync.WaitGroup
	made.Add(count)
	ended.Add(count)
	release := make(chan struct{})
	for i := 0; i < count; i++ {
		go func() {
			defer ended.Done()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread() // a goroutine that ends locked takes its thread along
			made.Done()
			<-release
		}()
	}
	made.Wait()
	close(release)
	ended.Wait()
}
