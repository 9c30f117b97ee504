// Package client lets a program say with each I/O what it is, and tells it what came of that: the
// attributes of package attrs, through the best channel that there is.
//
//	d, err := client.Open("/dev/ublkb0", client.Options{})
//	buf, err := d.Alloc(64 << 10)
//	var set attrs.Set
//	set.SetHint(attrs.HintBypass)
//	n, res, err := d.ReadAt(buf, 0, &set)
//	fmt.Println(res.For(attrs.IDHint).Status) // handled, or why not
//
// The channels, best first:
//
//   - [Shared]: the memory of the buffers is known to the block devices of caches, so the
//     attributes go along with requests through the kernel, also through filesystems and
//     device-mapper. For block devices and for files.
//   - [Direct]: requests go over a ring in that memory to the daemon, past the kernel's block layer. For
//     block devices of a cache, on any kernel, and for devices of a cache without a block device.
//   - [Plain]: ordinary I/O. Nobody handles any attribute, and the results say so.
//
// [Device.Channel] says which it is, and why not a better one.
//
// [Device.ReadAt] and its like wait for the request. [Device.Submit] and [Op.Wait] keep many under way, which
// through the kernel one thread submits and reaps by io_uring, or, where that is not to be had, a few
// do with system calls. No request starts a goroutine or allocates memory. A set that many requests have in
// common is best prepared once ([attrs.Set.Prepare]).
package client
