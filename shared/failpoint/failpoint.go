// Package failpoint names the places between two effects at which a crash has to be harmless. In every ordinary build
// Here is an empty function that the compiler leaves out. In one with the tag failpoints, MILLRACE_FAILPOINT makes one of
// the places fail, the first time it is come by in the life of the process:
//
//	MILLRACE_FAILPOINT=importer.settled=kill      kill -9, at this very line
//	MILLRACE_FAILPOINT=importer.settled=error     an error, as if the effect before had failed
//	MILLRACE_FAILPOINT=importer.settled=30s       the line takes 30 s
//
// and MILLRACE_FAILPOINT_HIT names a file that is made when it did. The crash matrix (services/millrace, TestCrashMatrix)
// reads the names from the source, and goes through all of them.
package failpoint
