// Package extents finds out where the data of files lies on the block device below their filesystem,
// and keeps that up to date while they change.
//
// A [Resolver] is asked to watch files and folders ([Spec]) and reports where their data is
// ([Update]). It asks the filesystem (FIEMAP), follows partitions and linear mappings down to the
// device, and looks again when something changes:
//
//   - inotify tells of files that are written, truncated, made, removed or moved in a watched folder.
//     Changes are collected, and looked at after [quiet], or after ten times as long as the last look
//     took, so that the work stays below a tenth of a CPU.
//   - Every minute ([sweepEvery], or a hundred times as long as that takes) all files are compared by
//     inode, size and times, which finds what inotify does not tell: changes by way of another hard
//     link or of a mapping into memory, and all where the kernel gives no more watches. Every tenth
//     time the filesystem is asked about each file, which finds files that were moved in place, as
//     defragmentation does.
//   - A change of the mounts makes it check where the paths lead to.
//   - Data that has no place on the device yet is asked for again, and written out by that once the
//     file has not changed for some seconds.
//
// So a file that is removed or cut loses its old extents within a quarter of a second and the time it
// takes to look, a minute if the kernel did not tell.
//
// # A process of its own
//
// The resolver must not run in the process that serves the device. A thread that waits for I/O of a
// device cannot be killed; if the process died it could not end, so its part of the device would not be
// given back, and no new process could take it over to do the I/O. Besides, a daemon in a mount
// namespace of its own does not see what is mounted. [Client] starts a process for the resolver and
// speaks with it, [Serve] is what runs there. A daemon never waits for that process without a limit.
package extents
