/* FASTPAXOS_CHECKED is 1 in the checked and asan builds: ring accessors then verify their offsets. */
#ifndef FASTPAXOS_CHECKS_H
#define FASTPAXOS_CHECKS_H
#ifndef FASTPAXOS_CHECKED
#define FASTPAXOS_CHECKED 0
#endif
#ifndef FASTPAXOS_PROFILE
#define FASTPAXOS_PROFILE "release"
#endif
#endif
