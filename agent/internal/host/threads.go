package host

import (
	"runtime"
	"sync"
)

const spareThreads = 8

// keepThreads creates threads ahead, which the scheduler keeps. Once an application has used up the host's processes, no
// thread can be created, and Go aborts a program that needs one while others wait for a disk.
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
