package faulttable

import (
	"fmt"
	"slices"
)

// PlaceSimulator is the place of rows that are no VM's.
const PlaceSimulator = "simulator"

// Required are the rows that make test must have of the newest kernel, so that a test that was skipped, renamed or
// removed does not pass for one in which nothing went wrong. A test of a new fault adds its rows here.
var Required = []string{
	"SSD: a flush fails, writeback",
	"SSD: a flush fails, writethrough",
	"SSD: bad sectors, clean data",
	"SSD: bad sectors, dirty data",
	"SSD: both superblocks lost after a stop, clean data",
	"SSD: full of dirty data",
	"SSD: medium errors (scsi_debug)",
	"SSD: metadata lost (journal), dirty data salvaged",
	"SSD: metadata lost (superblocks), dirty data salvaged",
	"SSD: not there at the start, devices served, SSD returns",
	"SSD: one copy of the summaries lost, dirty data",
	"SSD: one superblock lost, dirty data",
	"SSD: reads fail, clean data",
	"SSD: reads fail, dirty data",
	"SSD: reads return wrong bytes, clean data",
	"SSD: reads return wrong bytes, dirty data",
	"SSD: slow",
	"SSD: stalls",
	"SSD: stalls until it is lost, clean data, goes on",
	"SSD: stalls until it is lost, dirty data, I/O waits",
	"SSD: unplugged and plugged back, clean data",
	"SSD: unplugged and plugged back, dirty data, I/O waits",
	"SSD: vanishes and returns, clean data",
	"SSD: vanishes and returns, clean data, nothing missed",
	"SSD: vanishes, dirty data, returns after changes",
	"SSD: vanishes, the daemon is killed, SSD returns",
	"SSD: writes are dropped, clean data",
	"SSD: writes fail, clean data",
	"SSD: writes fail, dirty data",
	"SSD: wrong bytes are written, clean data",
	"SSD lost: clean data, fio goes on",
	"SSD lost: dirty data, I/O waits",
	"SSD lost: dirty data, ssd-loss=error",
	"SSD lost: dirty data, ssd-loss=read-only",
	"SSD lost: dirty data, ssd-loss=stop",
	"SSD lost: stalls",
	"backing device: gone under a filesystem, I/O waits",
	"backing device: medium errors (scsi_debug)",
	"backing device: reads fail, writeback",
	"backing device: slow",
	"backing device: stalls",
	"backing device: unplugged and plugged back under another name",
	"backing device: used without the cache, clean data, ext4",
	"backing device: used without the cache, dirty data, ext4",
	"backing device: writes fail, writearound",
	"backing device: writes fail, writeback",
	"backing device: writes fail, writethrough",
	"daemon killed (kill -9), writeback",
	"daemon killed (kill -9), writeback-nosums",
	"daemon killed (kill -9), writethrough",
	"daemon killed by the kernel for lack of memory",
	"daemon killed under a filesystem",
	"daemon stopped by SIGSTOP, then SIGCONT",
	"daemon stopped by SIGSTOP, then SIGKILL",
	"daemon upgraded under load",
	"ordered device: SSD lost for good, ext4",
	"ordered device: its disk alone, under load, ext4",
	"power cut after a flush of the SSD, writeback",
	"power cut after a flush of the SSD, writeonly",
	"power cut after a flush of the SSD, writethrough",
	"power cut after a flush of the backing device, writeback",
	"power cut after a flush of the backing device, writeonly",
	"power cut after a flush of the backing device, writethrough",
	"power cut at rest, writeback",
	"power cut at rest, writeonly",
	"power cut at rest, writethrough",
	"power cut during a flush of the SSD, writeback",
	"power cut during a flush of the SSD, writeonly",
	"power cut during a flush of the SSD, writethrough",
	"power cut during a flush of the backing device, writeback",
	"power cut during a flush of the backing device, writeonly",
	"power cut during a flush of the backing device, writethrough",
	"power cut of the machine, writeback",
	"power cut of the machine, writethrough",
}

// Missing lists the required rows that the newest kernel of a table has not, and which kernel that is.
func Missing(rows []Row) (kernel string, missing []string) {
	has := map[string]bool{}
	for _, r := range rows {
		if r.Place == PlaceSimulator {
			continue
		}
		if newer := slices.Compare(version(r.Place), version(kernel)); newer > 0 {
			kernel, has = r.Place, map[string]bool{}
		} else if newer < 0 {
			continue
		}
		has[r.Fault] = true
	}
	for _, name := range Required {
		if !has[name] {
			missing = append(missing, name)
		}
	}
	return kernel, missing
}

// version is the three numbers that a kernel's release begins with.
func version(release string) (list []int) {
	var v [3]int
	_, _ = fmt.Sscanf(release, "%d.%d.%d", &v[0], &v[1], &v[2])
	return v[:]
}
