package blkbpf

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestDirectory puts queues into a directory and removes them, and wants to find those that are there, only those, and as
// the program looks for them.
func TestDirectory(t *testing.T) {
	d := directory{mem: make([]byte, directorySize*entryBytes)}
	rng := rand.New(rand.NewPCG(1, 2))
	var keys []key
	for disk := range 64 {
		for _, name := range []string{"ublkb%d", "a-long-name-%d", "loop%d", "ublkb%d00"} {
			for queue := range 4 {
				keys = append(keys, keyOf(fmt.Sprintf(name, disk), queue))
			}
		}
	}
	there := map[key]int{}
	most := 0
	for range 50_000 {
		k := keys[rng.IntN(len(keys))]
		place, free := d.find(k)
		switch was, ok := there[k]; {
		case ok && place != was:
			t.Fatalf("found at %d, was put at %d", place, was)
		case ok:
			d.remove(place)
			delete(there, k)
		case place >= 0:
			t.Fatalf("found at %d, is not there", place)
		case free < 0:
			t.Fatalf("no room among %d", d.n)
		default:
			d.put(free, k)
			there[k] = free
			most = max(most, free-k.home())
		}
		if d.n != len(there) {
			t.Fatalf("%d entries, %d are counted", len(there), d.n)
		}
	}
	for k, was := range there {
		if place, _ := d.find(k); place != was {
			t.Errorf("found at %d, was put at %d", place, was)
		}
		d.remove(was)
	}
	for i := range directorySize {
		if name := d.at(i).name; name != emptyName && name != removedName {
			t.Errorf("place %d has %#x when all is removed", i, name)
		}
	}
	t.Logf("up to %d places from home", most)
}

// TestDirectoryFull: there is room for all queues that a source can track, of many disks or few.
func TestDirectoryFull(t *testing.T) {
	for _, queues := range []int{1, 2, 3, 4, 8, 16, 31, 64, 128, 1024} {
		d := directory{mem: make([]byte, directorySize*entryBytes)}
		for i := range MaxQueues {
			k := keyOf(fmt.Sprintf("ublkb%d", i/queues), i%queues)
			_, free := d.find(k)
			if free < 0 {
				t.Errorf("%d queues a disk: no room after %d", queues, d.n)
				break
			}
			d.put(free, k)
		}
	}
}

// TestDirectoryCrowded: keys with the same home are found up to the last place; one more has none.
func TestDirectoryCrowded(t *testing.T) {
	d := directory{mem: make([]byte, directorySize*entryBytes)}
	last := key{}
	for last.home() != 1<<directoryBits-1 { // the last home, so that all places behind it are needed
		last.name++
	}
	crowd := neighbours(last, directoryTries+1)
	for i, k := range crowd {
		_, free := d.find(k)
		if i == directoryTries {
			if free >= 0 {
				t.Errorf("place %d is free for one too many", free)
			}
			continue
		}
		if free != last.home()+i {
			t.Fatalf("key %d is put at %d", i, free)
		}
		d.put(free, k)
	}
	for i, k := range crowd[:directoryTries] {
		if place, _ := d.find(k); place != last.home()+i {
			t.Errorf("key %d is at %d", i, place)
		}
	}
}

// neighbours makes keys, of other disks, that have the home of k.
func neighbours(k key, n int) (list []key) {
	for i := 0; len(list) < n; i++ {
		if o := keyOf(fmt.Sprintf("other%d", i), 0); o.home() == k.home() {
			list = append(list, o)
		}
	}
	return list
}
